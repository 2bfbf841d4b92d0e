"""Who looks at the console. Everything about a session is in this process' memory and ends with it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from finetune_operator.cli.target import Target

LASTS_SECONDS = 8 * 3600.0
"""A session, however much it is used."""
_MOST = 500


@dataclass(kw_only=True)
class Session:
    """One browser that has signed in."""

    target: Target
    """What it looks at, with its own rights."""
    who: str
    ends: float
    guard: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """In every form that asks for something: other sites cannot know it (CSRF)."""
    said: list[str] = field(default_factory=list)
    """Shown once, on the next page."""
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Connections that are the session's own."""


class Sessions:
    """Sessions by the secret in the browser's cookie."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Session] = {}

    async def begin(self, *, target: Target, who: str, closing: AsyncExitStack) -> str:
        """A new session; its secret. Beyond the most that are kept, the oldest ends."""
        for key, session in list(self._known.items()):
            if session.ends <= self._clock():
                await self.end(key)
        if len(self._known) >= _MOST:
            await self.end(next(iter(self._known)))
        key = secrets.token_urlsafe(32)
        self._known[key] = Session(target=target, who=who, ends=self._clock() + LASTS_SECONDS, closing=closing)
        return key

    def find(self, key: str) -> Session | None:
        """The session, None where it has ended."""
        found = self._known.get(key)
        return found if found is not None and found.ends > self._clock() else None

    async def end(self, key: str) -> None:
        """Forget the session, and with it the token of its user."""
        if (found := self._known.pop(key, None)) is not None:
            await found.closing.aclose()

    async def end_all(self) -> None:
        """The console stops."""
        for key in list(self._known):
            await self.end(key)
