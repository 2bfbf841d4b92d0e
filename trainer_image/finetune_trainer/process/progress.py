"""Reports progress while a stage runs: to the operator's door, or to a file in local mode.

A report is cumulative and best effort. It is sent by a thread of its own, at most every few seconds, and nothing that
goes wrong with it is ever felt by the training.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_api.finetunejob import ProgressMetric, TrainerStatus
from finetune_api.progress import (
    CA_VARIABLE,
    LIFE_VARIABLE,
    MINIMUM_INTERVAL_SECONDS,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    ProgressReport,
)

log = logging.getLogger(__name__)
FILE_VARIABLE = "FINETUNE_PROGRESS_FILE"
_TIMEOUT_SECONDS = 5.0
_FILE_INTERVAL_SECONDS = 0.5
_LIFE_SECONDS = 3.0


def show_life(environment: Mapping[str, str] | None = None) -> None:
    """Say by a file's time that something was done: that needs no network. Every process of a pod may."""
    name = (os.environ if environment is None else environment).get(LIFE_VARIABLE)
    if name:
        try:
            Path(name).touch()
        except OSError as error:  # a sign of life is never worth a training
            log.debug("no sign of life: %s", error)


@contextmanager
def living(seconds: float) -> Iterator[None]:
    """Show life meanwhile, for that long: around what takes its time without a word, as a large model's files do."""
    ended = threading.Event()
    until = time.monotonic() + seconds

    def show() -> None:
        while time.monotonic() < until and not ended.wait(_LIFE_SECONDS):
            show_life()

    threading.Thread(target=show, name="life", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class ProgressReporter:
    """Use as a context manager; the last report is sent on leaving."""

    def __init__(self, *, environment: Mapping[str, str] | None = None) -> None:
        values = os.environ if environment is None else environment
        self._url = values.get(URL_VARIABLE)
        self._token = values.get(TOKEN_VARIABLE)
        self._ca = values.get(CA_VARIABLE)
        self._file = values.get(FILE_VARIABLE)
        self._interval = MINIMUM_INTERVAL_SECONDS if self._url else _FILE_INTERVAL_SECONDS
        self._latest: bytes | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._send_all, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._url or self._file:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * _TIMEOUT_SECONDS)

    def report(self, *, fraction: float, remaining_seconds: float | None, metrics: Mapping[str, float]) -> None:
        """Tell how far the stage is (0 to 1), how long it will take, and its metrics. Returns at once."""
        status = TrainerStatus(
            progress_percentage=min(100, max(0, int(fraction * 100))),
            estimated_remaining_seconds=None if remaining_seconds is None else max(0, round(remaining_seconds)),
            metrics=[ProgressMetric(name=name, value=_text(value)) for name, value in metrics.items()],
            last_updated_time=datetime.now(UTC),
        )
        body = json.dumps(ProgressReport(trainer_status=status).to_dict()).encode()
        with self._changed:
            self._latest = body
            self._changed.notify()

    def _send_all(self) -> None:
        sent_at = float("-inf")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._closed)
                wait = sent_at + self._interval - time.monotonic()
                if wait > 0 and not self._closed:
                    self._changed.wait_for(lambda: self._closed, timeout=wait)
                body, self._latest = self._latest, None
                closed = self._closed
            if body is not None:
                sent_at = time.monotonic()
                self._send(body)
            if closed:
                return

    def _send(self, body: bytes) -> None:
        try:
            if self._url:
                self._post(body)
            elif self._file:
                path = Path(self._file)
                temporary = path.with_suffix(".tmp")
                temporary.write_bytes(body)
                temporary.replace(path)
        except Exception as error:  # a report is never worth a training
            log.debug("progress was not reported: %s", error)

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        if self._token:  # read anew each time: kubelet renews the token
            headers["Authorization"] = f"Bearer {Path(self._token).read_text().strip()}"
        context = ssl.create_default_context(cafile=self._ca) if self._ca else None
        request = urllib.request.Request(str(self._url), data=body, headers=headers, method="POST")  # noqa: S310
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=context):  # noqa: S310 - the operator's
            pass


def _text(value: float) -> str:
    """Steps of long runs have more digits than a loss is worth."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 2**53 else f"{value:.6g}"
