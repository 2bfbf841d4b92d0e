"""Clients of one endpoint in the rollback benchmark: open loop, at random times, many users."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import aiohttp

_USERS = 10_000
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One client request. Times by the monotonic clock."""

    name: str
    began: float
    ended: float
    status: int
    """0: no answer."""


@dataclass(kw_only=True)
class Clients:
    """Sends requests to a gateway until cancelled."""

    endpoint: str
    url: str
    rate: float
    answered: list[Answered] = field(default_factory=list)
    _tasks: dict[asyncio.Task[None], float] = field(default_factory=dict)
    """Requests without an answer yet: when they began."""
    _sent: int = 0

    async def send(self, session: aiohttp.ClientSession) -> None:
        """Requests at `rate`, whether or not earlier ones were answered."""
        rng = random.Random(self.endpoint)
        due = time.monotonic()
        while True:
            due += rng.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._sent += 1
            task = asyncio.create_task(
                self._one(session, name=f"{self.endpoint}/{self._sent}", user=rng.randrange(_USERS))
            )
            self._tasks[task] = time.monotonic()
            task.add_done_callback(self._tasks.pop)

    async def all_answered(self, *, before: float) -> None:
        """Wait until no request that began before this time is under way. Their patience is limited."""
        earlier = [task for task, began in self._tasks.items() if began < before]
        if earlier:
            await asyncio.wait(earlier)

    async def _one(self, session: aiohttp.ClientSession, *, name: str, user: int) -> None:
        body = {"model": self.endpoint, "messages": [{"role": "user", "content": name}], "user": f"user-{user}"}
        began, status = time.monotonic(), 0
        try:
            timeout = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
            async with session.post(f"{self.url}/v1/chat/completions", json=body, timeout=timeout) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        self.answered.append(Answered(name=name, began=began, ended=time.monotonic(), status=status))
