"""Containers as processes: start them, tell them to stop, learn how they have ended.

Each runs under a shim (shim.py) and ends with the `finetune` that started it. A file that the shim keeps locked while
it runs says how it ended, so that a `finetune` that was killed is followed by one that knows.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_operator.local import shim
from finetune_operator.local.files import read_json

ENDED_FILE = "ended.json"
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a container ended; times are RFC 3339."""

    exit_code: int
    signal: int | None = None
    started_at: str | None = None
    finished_at: str | None = None
    reason: str | None = None
    message: str | None = None


class Container:
    """A container that this process has started."""

    def __init__(
        self,
        *,
        folder: Path,
        log: Path,
        command: Sequence[str],
        environment: Mapping[str, str],
        grace_seconds: int,
    ) -> None:
        """Start it in its folder. Raises OSError where the disk is full."""
        self._asked = False
        self._record = folder / ENDED_FILE
        record = os.open(self._record, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(record, fcntl.LOCK_EX)  # the shim's from now on: it belongs to the open file, not to a process
            arguments = [str(os.getpid()), str(record), str(grace_seconds), *command]
            with log.open("ab", buffering=0) as output:
                self._shim = subprocess.Popen(
                    [sys.executable, "-I", "-S", shim.__file__, *arguments],
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    start_new_session=True,
                    pass_fds=(record,),
                )
        finally:
            os.close(record)

    def stop(self) -> None:
        """SIGTERM once, then SIGKILL after the grace period; the shim sees to both."""
        if not self._asked:
            self._asked = True
            self._shim.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL now."""
        self._shim.send_signal(signal.SIGALRM)

    async def wait(self) -> Ended:
        """Wait until all of it has ended."""
        while self._shim.poll() is None:  # noqa: ASYNC110 - one system call
            await asyncio.sleep(_POLL_SECONDS)
        return read_end(self._record)


async def end_left_behind(folder: Path) -> Ended | None:
    """How a container ended that an earlier process had started here, as soon as it has; None: there was none."""
    try:
        record = os.open(folder / ENDED_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        while not _is_unlocked(record):  # noqa: ASYNC110 - it was told to end, and has its time for that
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        os.close(record)
    return read_end(folder / ENDED_FILE)


def read_end(record: Path) -> Ended:
    """What the file says of a container that runs no more."""
    content = read_json(record)
    if not content:
        # Its shim was killed, or the machine was switched off.
        return Ended(exit_code=128 + signal.SIGKILL, reason="ContainerStatusUnknown")
    return Ended(
        exit_code=content["exitCode"],
        signal=content.get("signal"),
        started_at=content["startedAt"],
        finished_at=content["finishedAt"],
        reason=content.get("reason"),
        message=content.get("message"),
    )


def _is_unlocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
