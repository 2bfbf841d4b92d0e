"""Waiting in tests: for what files and processes will show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.patience import HANGS_S

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T] | T], *, seconds: float = HANGS_S) -> T:
    """The first truthy answer. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            found = look()
            answer = await found if isinstance(found, Awaitable) else found
            if answer:
                return answer
            await asyncio.sleep(0.02)


def wait_for(look: Callable[[], T], *, seconds: float = HANGS_S, what: str = "it") -> T:
    """The first truthy answer, where there is no event loop. Raises TimeoutError."""
    due = time.monotonic() + seconds
    while time.monotonic() < due:
        if found := look():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not happen in {seconds:.0f} s")
