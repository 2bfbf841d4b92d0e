"""Watching in tests that something stays as it is, where a mistake would show within a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

_LOOKS = 20


async def stays(look: Callable[[], Awaitable[object] | object], *, seconds: float) -> None:
    """Look all the time; AssertionError as soon as the answer is not truthy."""
    due = time.monotonic() + seconds
    while True:
        found = look()
        answer = await found if isinstance(found, Awaitable) else found
        assert answer, f"no longer so, with {due - time.monotonic():.2f} of {seconds:g} s to go: {answer!r}"
        if time.monotonic() >= due:
            return
        await asyncio.sleep(seconds / _LOOKS)


def stays_so(look: Callable[[], object], *, seconds: float) -> None:
    """`stays`, where there is no event loop."""
    asyncio.run(stays(look, seconds=seconds))
