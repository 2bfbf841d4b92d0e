"""The versions' servers of the rollback benchmark: they answer at once, until a fault is injected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

Fault = Literal["errors", "hangs", "garbage", "slow"]
FAULTS: tuple[Fault, ...] = ("errors", "hangs", "garbage", "slow")
SLOW_SECONDS = 2.6
"""Over the endpoint's limit of 2 s, and not yet overdue (4 s): a breaker does not help."""
_GOOD = "Your order was sent on Monday and should reach you within two working days."
_GARBAGE = "the the " * 40


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A request that reached a version."""

    version: str
    at: float
    """Monotonic clock."""
    faulty: bool


@dataclass(kw_only=True)
class Upstreams:
    """All versions of all endpoints behind one port; a version is a path prefix, named like its Service."""

    faults: dict[str, Fault] = field(default_factory=dict)
    """By version."""
    visits: dict[str, list[Visit]] = field(default_factory=dict)
    """By request."""
    by_version: dict[str, list[Visit]] = field(default_factory=dict)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve while the context is open; gives the base URL."""
        application = web.Application()
        application.router.add_post("/{version}/v1/chat/completions", self._chat)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    def forget(self, version: str, requests: set[str]) -> None:
        """Drop what is no longer needed."""
        self.by_version.pop(version, None)
        self.faults.pop(version, None)
        for request in requests:
            self.visits.pop(request, None)

    async def _chat(self, request: web.Request) -> web.Response:
        version = request.match_info["version"]
        name = str((await request.json())["messages"][0]["content"])
        fault = self.faults.get(version)
        visit = Visit(version=version, at=time.monotonic(), faulty=fault is not None)
        self.visits.setdefault(name, []).append(visit)
        self.by_version.setdefault(version, []).append(visit)
        if fault == "errors":
            return web.json_response({"error": {"message": "CUDA error: device-side assert triggered"}}, status=500)
        if fault == "hangs":
            await asyncio.sleep(3600)  # until the gateway hangs up
        if fault == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        text = _GARBAGE if fault == "garbage" else _GOOD
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return web.json_response({"id": name, "object": "chat.completion", "choices": [choice]})
