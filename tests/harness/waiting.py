"""Bounded waits: nothing in the harness blocks for ever, and what gave up says what it last saw."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.harness.errors import Timeout
from tests.patience import HANGS_S

T = TypeVar("T")


def wait_until(
    probe: Callable[[], T | None],
    *,
    what: str,
    timeout_s: float = HANGS_S,
    interval_s: float = 0.1,
    explain: Callable[[], str] | None = None,
) -> T:
    """Call `probe` until it returns something true and return that.

    Raises `Timeout` naming `what`, with the text of `explain` (a log's tail, the last state seen). An exception of
    `probe` ends the wait at once: a probe that expects failures catches them itself.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() >= deadline:
            detail = f"\n{explain()}" if explain else ""
            raise Timeout(f"{what}: not within {timeout_s:g} s{detail}")
        time.sleep(interval_s)
