"""The one thread that runs the model, and the queue in front of it.

Work goes in rounds: what is under way is handed to the model's runner, which brings all of it a step further. Between
two rounds requests begin, in the order in which they came, and what nobody waits for any more is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from finetune_api.panics import as_exception

log = logging.getLogger(__name__)
Event = TypeVar("Event")


class BusyError(Exception):
    """As many requests are waiting as may. `seconds`: after about how long one of them begins."""

    def __init__(self, *, seconds: float) -> None:
        super().__init__(f"as many wait as may, for {seconds:.1f} s each")
        self.seconds = seconds


class Runner(Protocol):
    """A model, and how it works on several requests."""

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are held, those that fill rows up included."""
        ...

    def admits(self, work: Any, *, under_way: Sequence[Any]) -> bool:
        """Whether work may begin beside what is under way; always, where nothing is."""
        ...

    def round(self, under_way: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Bring work a step further: (work, event or exception). What is not among `under_way` any more is forgotten.

        Work is over with an exception, or with an event whose `last` is true. A round that raises ends all of it.
        """
        ...


@dataclass(kw_only=True, eq=False)
class Ticket(Generic[Event]):
    """Work that was handed in. Iterate over its events; `cancel` ends it early."""

    work: Any
    _loop: asyncio.AbstractEventLoop
    _events: asyncio.Queue[Event | Exception | None] = field(default_factory=asyncio.Queue)
    """None: nothing follows."""
    is_over: bool = False
    """Nothing is to be done for it any more."""

    def cancel(self) -> None:
        """Do no further step."""
        self.tell(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events in order. Raises what the work raised."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    def tell(self, *events: Any) -> None:
        """Hand on what a round brought: an event, why nothing follows (an exception), or that nothing does (None)."""
        for event in events:
            self.is_over = self.is_over or event is None or isinstance(event, Exception)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Engine:
    """Runs work on a thread of its own."""

    def __init__(self, *, concurrency: int, max_waiting: int) -> None:
        self._concurrency = concurrency
        self._max_waiting = max_waiting
        self._waiting: list[Ticket[Any]] = []
        self._active: list[Ticket[Any]] = []
        self._queue_since, self._begun = 0.0, 0
        """Since when somebody waits (`time.monotonic`), and how many have begun since then."""
        self._changed = threading.Condition(threading.RLock())
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._runner: Runner | None = None

    def start(self, runner: Runner) -> None:
        """Start the thread."""
        self._runner = runner
        # A daemon: a stop that cannot wait for a round to end must not be held up by it.
        self._thread = threading.Thread(target=self._run, args=(runner,), name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it can do any work at all."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Work that has not begun."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Work under way."""
        return sum(not ticket.is_over for ticket in self._active)

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are held for what is under way."""
        return 0 if self._runner is None else self._runner.kept_tokens

    def submit(self, *works: Any) -> list[Ticket[Any]]:
        """Hand in the works of one request, from a coroutine. They are taken together where the first of them may wait.

        Raises BusyError.
        """
        loop = asyncio.get_running_loop()
        tickets: list[Ticket[Any]] = [Ticket(work=work, _loop=loop) for work in works]
        with self._changed:
            if self._stopping or not self.is_alive:
                raise RuntimeError("the thread that runs the model has ended")
            _, waiting = self._in_order([*self._waiting, *tickets[:1]])
            if len(waiting) > self._max_waiting:
                raise BusyError(seconds=(time.monotonic() - self._queue_since) / max(self._begun, 1))
            if not self._waiting:
                self._queue_since, self._begun = time.monotonic(), 0
            self._waiting += tickets
            self._changed.notify()
        return tickets

    def stop(self, *, timeout: float) -> bool:
        """End the thread after its current round; whether it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:  # there is none where the model is still loading
            self._thread.join(timeout)
        return not self.is_alive

    def _run(self, runner: Runner) -> None:
        try:
            while (turn := self._next_turn()) is not None:
                self._round(runner, turn)
        finally:
            with self._changed:
                self._stopping = True  # nothing that is handed in from now on would be done
                for ticket in [*self._active, *self._waiting]:
                    ticket.tell(RuntimeError("the server stopped"))

    def _next_turn(self) -> list[Ticket[Any]] | None:
        """All that is under way now; None when it is to stop. Waits for work."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._active)
            if self._stopping:
                return None
            self._active, waiting = self._in_order(self._waiting)
            self._begun += len(self._waiting) - len(waiting)
            self._waiting = waiting
            return list(self._active)

    def _in_order(self, waiting: Sequence[Ticket[Any]]) -> tuple[list[Ticket[Any]], list[Ticket[Any]]]:
        """Who is under way in the next round, and who goes on waiting: nobody overtakes another one."""
        assert self._runner is not None
        begun = [ticket for ticket in self._active if not ticket.is_over]
        left = [ticket for ticket in waiting if not ticket.is_over]
        for ticket in list(left):
            works = [each.work for each in begun]
            if len(begun) >= self._concurrency or not self._runner.admits(ticket.work, under_way=works):
                break
            begun.append(left.pop(0))
        return begun, left

    @staticmethod
    def _round(runner: Runner, turn: Sequence[Ticket[Any]]) -> None:
        tickets = {id(ticket.work): ticket for ticket in turn}
        try:
            for work, event in runner.round([ticket.work for ticket in turn]):
                if isinstance(event, Exception):
                    log.error("a request failed", exc_info=event)
                    tickets[id(work)].tell(event)
                    if is_broken(event):
                        raise event
                else:
                    tickets[id(work)].tell(event, *([None] if event.last else []))
        except BaseException as caught:
            error = as_exception(caught)
            log.exception("a round failed")
            for ticket in turn:
                if not ticket.is_over:
                    ticket.tell(error)
            if is_broken(error):
                raise


def is_broken(error: object) -> bool:
    """Whether a GPU's context is broken. It answers nothing any more: only a new process helps."""
    return type(error).__name__ == "AcceleratorError"
