"""Who is under way, who waits, and what becomes of those whose work fails or who have gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from tests.patience import HANGS_S

from finetune_trainer.serving.engine import BusyError, Engine


@dataclass(frozen=True, kw_only=True)
class Said:
    text: str
    last: bool


@dataclass(eq=False)
class Work:
    """So many events, one a round."""

    name: str
    steps: int
    size: int = 1
    error: Exception | None = None
    """Raised after the first event."""
    done: int = 0


@dataclass(kw_only=True)
class Counting:
    """Notes who is under way in each round."""

    kept_tokens: int = 0
    room: int = 100
    fails: Exception | None = None
    """The whole second round does."""
    rounds: list[str] = field(default_factory=list)

    def admits(self, work: Work, *, under_way: Sequence[Work]) -> bool:
        return not under_way or work.size + sum(each.size for each in under_way) <= self.room

    def round(self, under_way: Sequence[Work]) -> Iterator[tuple[Work, Said | Exception]]:
        self.rounds.append("".join(each.name for each in under_way))
        if self.fails is not None and len(self.rounds) == 2:
            raise self.fails
        for work in under_way:
            work.done += 1
            if work.error is not None and work.done == 2:
                yield work, work.error
            else:
                yield work, Said(text=f"{work.name}{work.done}", last=work.done == work.steps)


def together(engine: Engine, *works: Work) -> list[object]:
    """Tickets; no round begins before all are handed in."""
    with engine._changed:
        return [engine.submit(work)[0] for work in works]


async def heard(ticket: object) -> list[str]:
    return [event.text async for event in ticket]  # type: ignore[attr-defined]


async def test_work_goes_in_rounds_and_later_work_waits() -> None:
    engine, runner = Engine(concurrency=2, max_waiting=1), Counting()
    with pytest.raises(RuntimeError, match="has ended"):
        engine.submit(Work("x", 1))
    engine.start(runner)
    try:
        with engine._changed:
            tickets = together(engine, Work("a", 3), Work("b", 3), Work("c", 1))
            with pytest.raises(BusyError):
                engine.submit(Work("d", 1))
        assert [await heard(ticket) for ticket in tickets] == [["a1", "a2", "a3"], ["b1", "b2", "b3"], ["c1"]]
        assert [each for each in runner.rounds if each] == ["ab", "ab", "ab", "c"]
    finally:
        assert engine.stop(timeout=HANGS_S)
    assert (engine.active, engine.waiting) == (0, 0)


async def test_what_has_no_room_waits_and_nobody_overtakes_it() -> None:
    engine, runner = Engine(concurrency=4, max_waiting=4), Counting(room=5)
    engine.start(runner)
    try:
        tickets = together(engine, Work("a", 2, size=3), Work("b", 1, size=4), Work("c", 1, size=1))
        for ticket in tickets:
            await heard(ticket)
        assert [each for each in runner.rounds if each] == ["a", "a", "bc"]
    finally:
        assert engine.stop(timeout=HANGS_S)


async def test_so_many_wait_whoever_may_begin() -> None:
    """As many may wait as are said to, also where the model begins fewer than `concurrency`."""
    engine, go_on = Engine(concurrency=16, max_waiting=2), threading.Event()

    class Alone(Counting):
        def round(self, under_way: Sequence[Work]) -> Iterator[tuple[Work, Said | Exception]]:
            go_on.wait(5)
            yield from super().round(under_way)

    engine.start(Alone(room=1))
    try:
        tickets = [engine.submit(Work(name, 1))[0] for name in "abc"]
        with pytest.raises(BusyError) as busy:
            engine.submit(Work("d", 1))
        assert 0 <= busy.value.seconds < 5
        go_on.set()
        assert [await heard(ticket) for ticket in tickets] == [["a1"], ["b1"], ["c1"]]
    finally:
        go_on.set()
        assert engine.stop(timeout=HANGS_S)


async def test_a_request_of_several_works_is_taken_or_refused_whole() -> None:
    engine, runner = Engine(concurrency=2, max_waiting=1), Counting()
    engine.start(runner)
    try:
        with engine._changed:
            tickets = engine.submit(*(Work(name, 2) for name in "abcd"))
            with pytest.raises(BusyError):
                engine.submit(Work("e", 1), Work("f", 1))
        assert [len(await heard(ticket)) for ticket in tickets] == [2, 2, 2, 2]
        assert [each for each in runner.rounds if each] == ["ab", "ab", "cd", "cd"]
    finally:
        assert engine.stop(timeout=HANGS_S)


async def test_what_is_given_up_is_worked_on_no_more() -> None:
    engine, runner = Engine(concurrency=1, max_waiting=4), Counting()
    engine.start(runner)
    try:
        endless, waiting, last = together(engine, Work("a", 10**9), Work("b", 1), Work("c", 1))
        events = aiter(endless)  # type: ignore[call-overload]
        assert (await anext(events)).text == "a1"
        waiting.cancel()  # type: ignore[attr-defined]
        endless.cancel()  # type: ignore[attr-defined]
        assert await heard(waiting) == []
        assert await heard(last) == ["c1"]
        assert "b" not in "".join(runner.rounds)
        assert [each.text async for each in events][-1:] != ["a1000000000"]
    finally:
        assert engine.stop(timeout=HANGS_S)


async def test_what_fails_is_told_and_harms_nobody_else() -> None:
    engine = Engine(concurrency=2, max_waiting=2)
    engine.start(Counting())
    try:
        failed, fine = together(engine, Work("x", 3, error=ValueError("out of words")), Work("a", 3))
        with pytest.raises(ValueError, match="out of words"):
            await heard(failed)
        assert await heard(fine) == ["a1", "a2", "a3"]
    finally:
        assert engine.stop(timeout=HANGS_S)


async def test_a_round_that_fails_ends_all_of_it_and_the_next_work_is_done() -> None:
    engine = Engine(concurrency=2, max_waiting=2)
    engine.start(Counting(fails=MemoryError("no room")))
    try:
        for ticket in together(engine, Work("a", 3), Work("b", 3)):
            with pytest.raises(MemoryError, match="no room"):
                await heard(ticket)
        assert await heard(engine.submit(Work("c", 2))[0]) == ["c1", "c2"]
    finally:
        assert engine.stop(timeout=HANGS_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("whole_round", [True, False])
async def test_a_broken_accelerator_ends_the_engine_and_fails_all(whole_round: bool) -> None:
    class AcceleratorError(RuntimeError):
        """torch's name for a GPU context that is broken."""

    broken = AcceleratorError("CUDA error: device-side assert triggered")
    engine = Engine(concurrency=2, max_waiting=2)
    engine.start(Counting(fails=broken if whole_round else None))
    first, other, waiting = together(
        engine, Work("x", 3, error=None if whole_round else broken), Work("a", 10**9), Work("c", 1)
    )
    with pytest.raises(AcceleratorError):
        await heard(first)
    for ticket in (other, waiting):
        with pytest.raises(RuntimeError, match=r"stopped|device-side"):
            await heard(ticket)
    assert engine.stop(timeout=HANGS_S)
    assert not engine.is_alive


async def test_the_end_waits_for_the_round_under_way() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Counting):
        def round(self, under_way: Sequence[Work]) -> Iterator[tuple[Work, Said | Exception]]:
            begun.set()
            go_on.wait(5)
            yield from super().round(under_way)

    engine = Engine(concurrency=1, max_waiting=1)
    engine.start(Slow())
    (ticket,) = engine.submit(Work("a", 5))
    assert begun.wait(5)
    assert not engine.stop(timeout=0.01), "a round cannot be broken off"
    go_on.set()
    assert engine.stop(timeout=HANGS_S)
    with pytest.raises(RuntimeError, match="stopped"):
        await heard(ticket)
