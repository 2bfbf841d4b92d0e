"""The work queue: one worker a key, no doubles, delays, backoff."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from tests.staying import stays

from finetune_operator.core.workqueue import Handler, WorkQueue


@dataclass
class Observer:
    """What the queue told."""

    depths: list[int] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    works: list[float] = field(default_factory=list)
    retries: int = 0

    def depth(self, count: int) -> None:
        self.depths.append(count)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def worked(self, seconds: float) -> None:
        self.works.append(seconds)

    def retried(self) -> None:
        self.retries += 1


@asynccontextmanager
async def working(
    handler: Handler[str], *, workers: int = 4, observer: Observer | None = None
) -> AsyncIterator[WorkQueue[str]]:
    queue: WorkQueue[str] = WorkQueue(
        handler, observer=observer, first_backoff_seconds=0.01, longest_backoff_seconds=0.05
    )
    task = asyncio.create_task(queue.run(workers=workers))
    try:
        yield queue
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 - the queue has no events to wait for
            await asyncio.sleep(0.001)


async def test_a_key_is_worked_on_by_one_worker_at_a_time() -> None:
    busy: set[str] = set()
    seen: list[str] = []

    async def handler(key: str) -> None:
        assert key not in busy
        busy.add(key)
        await asyncio.sleep(0.005)
        busy.discard(key)
        seen.append(key)

    async with working(handler) as queue:
        for _ in range(5):
            for key in "abcdef":
                queue.add(key)
            await asyncio.sleep(0)
        await until(lambda: queue.idle)
    assert set(seen) == set("abcdef")
    assert len(seen) < 30, "doubles collapse"


async def test_a_key_added_while_it_is_worked_on_is_looked_at_again() -> None:
    looks = 0
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(_: str) -> None:
        nonlocal looks
        looks += 1
        begun.set()
        await go.wait()

    async with working(handler) as queue:
        queue.add("a")
        await begun.wait()
        for _ in range(10):
            queue.add("a")
        go.set()
        await until(lambda: looks == 2)
        await stays(lambda: looks == 2, seconds=0.02)


async def test_waiting_keys_collapse() -> None:
    looks: list[str] = []

    async def handler(key: str) -> None:
        looks.append(key)

    queue: WorkQueue[str] = WorkQueue(handler)
    for _ in range(10):
        queue.add("a")
    assert len(queue) == 1


async def test_a_delayed_key_comes_once_and_at_the_earlier_time() -> None:
    looks: list[float] = []
    loop = asyncio.get_running_loop()

    async def handler(_: str) -> None:
        looks.append(loop.time())

    async with working(handler) as queue:
        started = loop.time()
        queue.add_after("a", seconds=5.0)
        queue.add_after("a", seconds=0.05)
        queue.add_after("a", seconds=3.0)
        await until(lambda: looks)
        await stays(lambda: len(looks) == 1, seconds=0.05)
    assert 0.04 <= looks[0] - started < 1.0


async def test_an_event_overtakes_a_delay() -> None:
    looks: list[str] = []

    async def handler(key: str) -> None:
        looks.append(key)

    async with working(handler) as queue:
        queue.add_after("a", seconds=0.05)
        queue.add("a")
        await until(lambda: looks)
        await stays(lambda: looks == ["a"], seconds=0.1)  # the delayed look was for the same reason


async def test_a_handler_says_when_to_look_again() -> None:
    answers: list[float | None] = [0.0, 0.01, None]
    looks: list[str] = []

    async def handler(key: str) -> float | None:
        looks.append(key)
        return answers.pop(0)

    async with working(handler) as queue:
        queue.add("a")
        await until(lambda: len(looks) == 3)
        await stays(lambda: len(looks) == 3, seconds=0.05)


class PanicException(BaseException):
    """No Exception."""


@pytest.mark.parametrize("failure", [RuntimeError, PanicException])
async def test_a_key_that_fails_holds_up_no_other(failure: type[BaseException]) -> None:
    observer = Observer()
    seen: list[str] = []

    async def handler(key: str) -> None:
        if key == "bad":
            raise failure("no")
        seen.append(key)

    async with working(handler, workers=1, observer=observer) as queue:
        queue.add("bad")
        for number in range(20):
            queue.add(f"good-{number}")
        await until(lambda: len(seen) == 20 and observer.retries >= 3)
    assert observer.retries >= 3


async def test_backoff_grows_and_is_forgotten_after_a_success() -> None:
    failures = iter([True, True, True, False, True, False])
    times: list[float] = []
    loop = asyncio.get_running_loop()

    async def handler(_: str) -> None:
        times.append(loop.time())
        if next(failures):
            raise RuntimeError("no")

    queue: WorkQueue[str] = WorkQueue(handler, first_backoff_seconds=0.1, longest_backoff_seconds=10)
    task = asyncio.create_task(queue.run(workers=1))
    queue.add("a")
    await until(lambda: len(times) == 4)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] >= 0.075
    assert gaps[1] >= 0.15
    assert gaps[2] >= 0.3
    queue.add("a")
    await until(lambda: len(times) == 6)
    assert times[5] - times[4] < 0.6, "the count begins anew"
    task.cancel()


async def test_a_worker_that_is_stopped_leaves_its_key_on_the_queue() -> None:
    begun = asyncio.Event()

    async def handler(_: str) -> None:
        begun.set()
        await asyncio.sleep(60)

    async with working(handler) as queue:
        queue.add("a")
        await begun.wait()
    assert len(queue) == 1


async def test_what_happens_is_told() -> None:
    observer = Observer()

    async def handler(_: str) -> None:
        await asyncio.sleep(0.01)

    async with working(handler, workers=1, observer=observer) as queue:
        queue.add("a")
        queue.add("b")
        await until(lambda: queue.idle)
        await asyncio.sleep(0)
    assert max(observer.depths) == 2
    assert observer.depths[-1] == 0
    assert len(observer.waits) == 2
    assert min(observer.works) >= 0.009
