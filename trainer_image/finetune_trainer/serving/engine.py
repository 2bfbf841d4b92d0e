"""The one thread that runs the model, and the queue in front of it.

Work is an iterator: each step is a token of an answer (or a whole classification) and may yield an event. The engine
takes steps of all work under way in turns, so that a short answer does not wait for a long one, and drops work whose
client has gone between two steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
Event = TypeVar("Event")


class BusyError(Exception):
    """As many requests are waiting as may."""


@dataclass(frozen=True, kw_only=True)
class _Failed:
    error: Exception


class _End:
    """Nothing follows."""


@dataclass(kw_only=True)
class Ticket(Generic[Event]):
    """Work that was handed in. Iterate over its events; `cancel` ends it early."""

    _work: Iterator[Event | None]
    _loop: asyncio.AbstractEventLoop
    _events: asyncio.Queue[Event | _Failed | _End] = field(default_factory=asyncio.Queue)
    _cancelled: bool = False

    def cancel(self) -> None:
        """Do no further step."""
        self._cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events in order. Raises what the work raised."""
        while True:
            event = await self._events.get()
            if isinstance(event, _End):
                return
            if isinstance(event, _Failed):
                raise event.error
            yield event

    def step(self) -> bool:
        """One step, on the engine's thread; whether there are more."""
        if self._cancelled:
            self._close()
            return False
        try:
            event = next(self._work)
        except StopIteration:
            self._tell(_End())
            return False
        except Exception as error:
            log.error("a request failed", exc_info=error)
            self.fail(error)
            if type(error).__name__ == "AcceleratorError":
                raise  # a GPU whose context is broken answers nothing any more: only a new process helps
            return False
        if event is not None:
            self._tell(event)
        return True

    def fail(self, error: Exception) -> None:
        """Tell whoever waits that nothing follows, and why."""
        self._tell(_Failed(error=error))

    def _close(self) -> None:
        if hasattr(self._work, "close"):
            self._work.close()
        self._tell(_End())

    def _tell(self, event: Event | _Failed | _End) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Engine:
    """Runs work on a thread of its own."""

    def __init__(self, *, concurrency: int, max_waiting: int) -> None:
        self._concurrency = concurrency
        self._max_waiting = max_waiting
        self._waiting: deque[Ticket[object]] = deque()
        self._active: list[Ticket[object]] = []
        self._changed = threading.Condition(threading.RLock())
        self._stopping = False
        # A daemon: a stop that cannot wait for a step to end must not be held up by it.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it can do any work at all."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Work that has not begun."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Work under way."""
        return len(self._active)

    def submit(self, work: Iterator[Event | None]) -> Ticket[Event]:
        """Hand in work, from a coroutine. Raises BusyError."""
        ticket = Ticket(_work=work, _loop=asyncio.get_running_loop())
        if not self.is_alive:
            raise RuntimeError("the thread that runs the model has ended")
        with self._changed:
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.is_cancelled)
            if len(self._active) + len(self._waiting) >= self._concurrency + self._max_waiting:
                raise BusyError
            self._waiting.append(ticket)  # type: ignore[arg-type]
            self._changed.notify()
        return ticket

    def stop(self, *, timeout: float) -> bool:
        """End the thread after its current step; whether it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.is_alive:  # it is not where the model is still loading
            self._thread.join(timeout)
        return not self.is_alive

    def _run(self) -> None:
        try:
            self._take_turns()
        finally:
            for ticket in [*self._active, *self._waiting]:
                ticket.fail(RuntimeError("the server stopped"))

    def _take_turns(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting or self._active)
                if self._stopping:
                    return
                while self._waiting and len(self._active) < self._concurrency:
                    self._active.append(self._waiting.popleft())
                turn = list(self._active)
            over = {id(ticket) for ticket in turn if not ticket.step()}
            with self._changed:
                self._active = [ticket for ticket in self._active if id(ticket) not in over]
