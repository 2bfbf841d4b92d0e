"""The work queue: which object to look at next.

Level-triggered, as in client-go: a key on the queue says "look", never "what". A key is worked on by one worker at a
time; one that is added meanwhile is looked at once more afterwards. A handler that raises is tried again with
exponential backoff, and only its own key waits.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

from finetune_api.panics import as_exception

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
Handler = Callable[[K], Awaitable[float | None]]
"""Works on a key; returns after how many seconds to look again, or None where an event will tell."""


class QueueObserver(Protocol):
    """Told of what happens on the queue, for metrics."""

    def depth(self, count: int) -> None:
        """Keys that wait for a worker now."""
        ...

    def waited(self, seconds: float) -> None:
        """A key was taken from the queue after this long."""
        ...

    def worked(self, seconds: float) -> None:
        """A handler ended after this long."""
        ...

    def retried(self) -> None:
        """A handler raised, and its key will be tried again."""
        ...


class WorkQueue(Generic[K]):
    """Keys and the workers that look at them. All methods belong to one event loop."""

    def __init__(
        self,
        handler: Handler[K],
        *,
        observer: QueueObserver | None = None,
        first_backoff_seconds: float = 0.5,
        longest_backoff_seconds: float = 120.0,
    ) -> None:
        self._handler = handler
        self._observer = observer
        self._first_backoff = first_backoff_seconds
        self._longest_backoff = longest_backoff_seconds
        self._ready: deque[K] = deque()
        self._since: dict[K, float] = {}
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._available = asyncio.Semaphore(0)

    def add(self, key: K) -> None:
        """Look at the key as soon as a worker is free. On the queue already: nothing changes."""
        self._cancel_timer(key)
        if key in self._working:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = asyncio.get_running_loop().time()
            self._ready.append(key)
            self._available.release()
            self._tell_depth()

    def add_after(self, key: K, *, seconds: float) -> None:
        """Look at the key later; of two times the earlier one holds."""
        if seconds <= 0:
            self.add(key)
            return
        if key in self._since:
            return  # it will be looked at sooner than that anyway
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + seconds:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(seconds, self.add, key)

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    @property
    def oldest_seconds(self) -> float:
        """How long the key that has waited longest has; 0: none waits."""
        waiting = tuple(self._since.values())  # at once: a scrape may ask from another thread
        return time.monotonic() - waiting[0] if waiting else 0.0

    @property
    def idle(self) -> bool:
        """Nothing waits for a worker and nobody works; delayed keys do not count."""
        return not self._ready and not self._working

    async def run(self, *, workers: int) -> None:
        """Work until cancelled; keys that are left stay on the queue."""
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._work(), name=f"worker-{number}")

    async def _work(self) -> None:
        while True:
            await self._available.acquire()
            key = self._ready.popleft()
            self._working.add(key)
            loop = asyncio.get_running_loop()
            started = loop.time()
            waited = started - self._since.pop(key)
            self._tell_depth()
            try:
                requeue = await self._handle(key)
            except asyncio.CancelledError:
                self._working.discard(key)
                self.add(key)  # nobody has finished looking
                raise
            self._working.discard(key)
            if self._observer is not None:
                self._observer.waited(waited)
                self._observer.worked(loop.time() - started)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif requeue is not None:
                self.add_after(key, seconds=requeue)

    async def _handle(self, key: K) -> float | None:
        """Seconds until the next look. No failure of a handler ends a worker."""
        try:
            requeue = await self._handler(key)
        except BaseException as caught:
            error = as_exception(caught)
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = self._backoff(failures=failures)
            log.warning("%s: attempt %d failed, trying again in %.1f s: %s", key, failures, delay, error)
            if self._observer is not None:
                self._observer.retried()
            return delay
        self._failures.pop(key, None)
        return requeue

    def _backoff(self, *, failures: int) -> float:
        longest = min(self._longest_backoff, self._first_backoff * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.75, 1.0)  # noqa: S311 - spreads load, guards nothing

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _tell_depth(self) -> None:
        if self._observer is not None:
            self._observer.depth(len(self._ready))
