"""When the pods of whom were first seen: one watch over all pods, as any client of the API would keep."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# Where each kind of run writes its name on its pods, and our stage beside it.
_OWNERS = ("finetune.dev/job", "bench.finetune.dev/floor", "jobset.sigs.k8s.io/jobset-name")
_STAGE = "finetune.dev/stage"


@dataclass
class PodArrivals:
    """Arrival times (seconds, monotonic) by run and stage."""

    _seen: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, run: str, *, pods: int, stage: str = "", timeout_seconds: float = 60) -> float:
        """Wait until so many pods of a run (and stage) have been seen; when the last of them was."""
        async with asyncio.timeout(timeout_seconds):
            while len(self._seen.get((run, stage), ())) < pods:
                self._changed.clear()
                await self._changed.wait()
        return max(self._seen[run, stage].values())

    def names(self, run: str, *, stage: str = "") -> list[str]:
        """The pods of a run that have been seen."""
        return sorted(self._seen.get((run, stage), ()))

    def see(self, event: dict[str, Any]) -> None:
        """Take in one event of the watch."""
        if event["type"] != "ADDED":
            return
        now = time.monotonic()
        metadata = event["object"]["metadata"]
        labels = metadata.get("labels") or {}
        run = next((labels[owner] for owner in _OWNERS if owner in labels), None)
        if run is not None:
            self._seen.setdefault((run, labels.get(_STAGE, "")), {})[metadata["name"]] = now
            self._changed.set()


@asynccontextmanager
async def watching_pods(session: aiohttp.ClientSession) -> AsyncIterator[PodArrivals]:
    """Watch while the context is open."""
    arrivals = PodArrivals()
    async with session.get("/api/v1/pods", params={"limit": "1"}) as answer:
        version = (await answer.json())["metadata"]["resourceVersion"]
    query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": "3600"}

    async def follow() -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        async with session.get("/api/v1/pods", params=query, timeout=timeout) as stream:
            async for line in stream.content:
                arrivals.see(json.loads(line))

    task = asyncio.create_task(follow())
    try:
        yield arrivals
    finally:
        task.cancel()
        await asyncio.wait({task})
