"""How `run` and `up` show what goes on: a drawing renewed in place in a terminal, plain lines everywhere else.

What cannot be shown ends nothing: the terminal is gone, the reader of a pipe has had enough, the disk of a log is full.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from finetune_api.streams import let_go, tell

PLAIN_SECONDS = 15.0
"""A plain line of progress at least this long after the one before."""
BAR_WIDTH = 28
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Seen = TypeVar("Seen", contravariant=True)


class Shows(Protocol[Seen]):
    """What there is to say of something that is looked at several times a second."""

    def news(self, seen: Seen) -> Iterator[tuple[datetime, str]]:
        """Plain lines for what is new since the last time, and of progress now and then."""
        ...

    def drawing(self, seen: Seen) -> Sequence[RenderableType]:
        """All that there is to see of it now."""
        ...


class View(Generic[Seen]):
    """Shows something on standard output; with a `console` as a drawing."""

    def __init__(self, shows: Shows[Seen], *, hint: str = "", console: Console | None = None) -> None:
        self._shows = shows
        self._hint = hint
        self._drawn: Sequence[RenderableType] = ()
        self._gone = False
        self._live: Live | None = None
        if console is not None:
            self._live = Live(console=console, auto_refresh=False, transient=False)
            self._write(self._live.start)

    @classmethod
    def chosen(cls, shows: Shows[Seen], *, options: argparse.Namespace, hint: str) -> View[Seen]:
        """A drawing in a terminal, unless --plain says otherwise."""
        plain = options.plain or not sys.stdout.isatty()
        return cls(shows, hint=hint, console=None if plain else Console())

    def show(self, seen: Seen) -> None:
        """What is seen now."""
        if self._live is None:
            for time, text in self._shows.news(seen):
                self.say(f"{time.astimezone():%H:%M:%S} {text}")
        else:
            self._drawn = self._shows.drawing(seen)
            self._draw(self._live, Text(self._hint, style="dim"))

    def say(self, text: str) -> None:
        """Something that happened, in a line of its own: above the drawing."""
        live = self._live
        self._write((lambda: tell(text)) if live is None else lambda: live.console.print(Text(text)))

    def close(self) -> None:
        """Leave the last drawing on the screen. What is said from now on comes below it."""
        live, self._live = self._live, None
        if live is not None:
            self._draw(live)
            self._write(live.stop)

    def leave(self) -> None:
        """There is nobody to show it to any more."""
        self._gone = True

    def _draw(self, live: Live, *more: RenderableType) -> None:
        self._write(lambda: live.update(Group(*self._drawn, *more), refresh=True))

    def _write(self, write: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            write()
        except OSError:
            self._gone = True
            let_go(sys.stdout)


class _ViewHandler(logging.Handler):
    """What the operator logs, as lines of a view."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(level=logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def stopped_by(interrupt: Callable[[], None], *, view: View[Seen]) -> Iterator[None]:
    """Until the end of the block Ctrl-C, SIGTERM and a closed terminal interrupt, and what is logged is shown."""

    def receive(number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            view.leave()
        interrupt()

    loop, handler = asyncio.get_running_loop(), _ViewHandler(view.say)
    logging.getLogger().addHandler(handler)
    for number in _STOPPING:
        loop.add_signal_handler(number, receive, number)
    try:
        yield
    finally:
        for number in _STOPPING:
            loop.remove_signal_handler(number)
        logging.getLogger().removeHandler(handler)
