"""The access log: a line for each request, written a few times a second, off the requests' path."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from finetune_gateway.tally import ArmKey

_INTERVAL_SECONDS = 0.25
_MOST_LINES = 10_000
"""Lines that wait to be written. A burst beyond that is written by the request that meets it."""

_LONGEST_METHOD, _LONGEST_PATH = 16, 256
"""Characters of what clients send; the lines that wait are kept in memory."""


@dataclass(kw_only=True)
class AccessLog:
    """Lines in the form of the process's other log lines: time, level, logger, message.

    The last quarter of a second is lost where the process is killed.
    """

    enabled: bool
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    on_drop: Callable[[int], object] = lambda count: None
    """Told how many lines could not be written."""
    _lines: list[str] = field(default_factory=list)
    _second: int = 0
    _stamp: str = ""

    def add(
        self,
        *,
        method: str,
        path: str,
        status: int,
        seconds: float,
        client: str | None,
        answer_id: str | None,
        arm: ArmKey | None,
        request_id: str | None,
    ) -> None:
        """Note one answer. `path` as it came, still percent-encoded: nobody can write lines of his own.

        The id of an answer tells its client nothing; here it is said which version gave it (`arm`).
        """
        if not self.enabled:
            return
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        by = "" if arm is None else f" epoch={arm[0]} rule={arm[1]} version={arm[2]}"
        milliseconds = int(now % 1 * 1000)
        self._lines.append(
            f"{self._stamp},{milliseconds:03d} INFO finetune_gateway.access "
            f"{method[:_LONGEST_METHOD]} {path[:_LONGEST_PATH]} {status} {seconds:.4f}s"
            f" client={client} answer={answer_id or '-'} request={request_id or '-'}{by}\n"
        )
        if len(self._lines) >= _MOST_LINES:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        if self._lines:
            lines, self._lines = self._lines, []
            try:
                self.stream.write("".join(lines))
                self.stream.flush()
            except OSError:  # a full disk, or nobody reads any more: requests are answered all the same
                self.on_drop(len(lines))

    async def keep_writing(self) -> None:
        """Write a few times a second. Runs until cancelled; what is left then is written too."""
        try:
            while True:
                await asyncio.sleep(_INTERVAL_SECONDS)
                self.write()
        finally:
            self.write()
