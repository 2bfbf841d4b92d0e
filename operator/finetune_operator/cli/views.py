"""How a run is shown while it goes on: a live view in a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from collections import deque
from datetime import datetime
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_operator.cli import words
from finetune_operator.cli.snapshot import Snapshot, StageView

_PLAIN_SECONDS = 15.0
"""A plain line of progress at least this long after the one before."""
_BAR_WIDTH = 28
_HISTORY = 24
_BLOCKS = "▁▂▃▄▅▆▇█"
_MARKS = {"Complete": ("✓", "green"), "Failed": ("✗", "red"), "Pending": ("·", "dim"), "Queued": ("…", "yellow")}


class View(Protocol):
    """Shows a run. `show` is called several times a second."""

    def show(self, snapshot: Snapshot) -> None:
        """The run as it is now."""
        ...

    def say(self, text: str) -> None:
        """Something that happened, in a line of its own."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class PlainView:
    """Lines with a time: one for each thing that changes, and of progress now and then."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._last: Snapshot | None = None
        self._told: datetime | None = None
        self._progress = ""

    def show(self, snapshot: Snapshot) -> None:
        """Print what is new."""
        before, self._last = self._last, snapshot
        for stage in snapshot.stages:
            earlier = next((each for each in before.stages if each.name == stage.name), None) if before else None
            self._show_stage(stage, earlier=earlier, snapshot=snapshot)
        message = snapshot.job.status.message or ""
        if message and (before is None or message != before.job.status.message):
            self._line(snapshot.now, f"{snapshot.phase}: {message}")
        self._show_progress(snapshot)

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is held back."""

    def _show_stage(self, stage: StageView, *, earlier: StageView | None, snapshot: Snapshot) -> None:
        if earlier is not None and (earlier.state, earlier.attempt) == (stage.state, stage.attempt):
            return
        if stage.state in ("Complete", "Failed"):
            took = f" in {words.seconds(stage.seconds)}" if stage.seconds is not None else ""
            text = f": {stage.text}" if stage.text else ""
            self._line(snapshot.now, f"{stage.name} {stage.state.lower()}{took}{text}")
        elif stage.state == "Running" and stage.attempt > 1:
            self._line(snapshot.now, f"{stage.name}: attempt {stage.attempt}")

    def _show_progress(self, snapshot: Snapshot) -> None:
        text = snapshot.training_words
        if snapshot.phase != "Training" or not text or text == self._progress:
            return
        if self._told is None or (snapshot.now - self._told).total_seconds() >= _PLAIN_SECONDS:
            self._told, self._progress = snapshot.now, text
            percent = "" if snapshot.fraction is None else f"{snapshot.fraction:.0%} "
            self._line(snapshot.now, f"Train: {percent}{text}")

    def _line(self, now: datetime, text: str) -> None:
        self.say(f"{now.astimezone():%H:%M:%S} {text}")


class LiveView:
    """A few lines that are drawn again and again: each stage, its time, and how far training is."""

    def __init__(self, *, console: Console | None = None, hint: str = "") -> None:
        self._console = console or Console()
        self._hint = hint
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._last: Snapshot | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=self._console, refresh_per_second=8, transient=False)
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        """Draw the run."""
        self._last = snapshot
        if snapshot.trainer is None:
            self._losses.clear()
        elif snapshot.loss is not None and (not self._losses or self._losses[-1] != snapshot.loss):
            self._losses.append(snapshot.loss)
        self._live.update(self.render(snapshot))

    def say(self, text: str) -> None:
        """A line above the drawing."""
        self._console.print(Text(text))

    def close(self) -> None:
        """Leave the last drawing on the screen."""
        self._hint = ""
        if self._last is not None:
            self._live.update(self.render(self._last))
        self._live.stop()

    def render(self, snapshot: Snapshot) -> RenderableType:
        """The drawing."""
        spec = snapshot.job.spec
        lora = f" r={spec.method.lora.rank}" if spec.method.lora else ""
        model = spec.model.uri.rstrip("/").rsplit("/", 1)[-1]
        title = Text.assemble(
            (snapshot.job.metadata.name, "bold"),
            "  ",
            (f"{model} · {spec.method.type}{lora} · {spec.model.task}", "dim"),
        )
        grid = Table.grid(padding=(0, 2))
        for _ in range(4):
            grid.add_column(no_wrap=True)
        grid.columns[3].no_wrap = False
        for stage in snapshot.stages:
            running = stage.state == "Running"
            mark: RenderableType = self._spinner if running else Text(*_MARKS[stage.state])
            attempt = f" ({stage.attempt})" if stage.attempt > 1 else ""
            time = words.seconds(stage.seconds) if stage.seconds is not None else ""
            name = Text(
                f"{stage.name}{attempt}", style="bold" if running else "dim" if stage.state == "Pending" else ""
            )
            grid.add_row(mark, name, Text(time, style="dim"), self._detail(stage, snapshot))
        lines: list[RenderableType] = [title, grid]
        note = self._note(snapshot)
        if note:
            lines.append(Text(note, style="yellow"))
        if self._hint:
            lines.append(Text(self._hint, style="dim"))
        return Group(*lines)

    def _detail(self, stage: StageView, snapshot: Snapshot) -> RenderableType:
        if stage.name != "Train" or stage.state != "Running" or snapshot.fraction is None:
            return Text(stage.text)
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=1.0, completed=snapshot.fraction, width=_BAR_WIDTH),
            Text(f"{snapshot.fraction:4.0%}", style="bold"),
            Text(snapshot.training_words),
            Text(sparkline(self._losses), style="cyan"),
        )
        return row

    def _note(self, snapshot: Snapshot) -> str:
        """What is worth saying beyond the stages: waits, restarts, ends."""
        condition = snapshot.job.status.condition("Reconciling") or snapshot.job.status.condition("Stalled")
        if condition is None or condition.reason in ("Preparing", "Training", "Evaluating", "Pending"):
            return ""
        return f"{condition.reason}: {condition.message}"


def sparkline(values: deque[float]) -> str:
    """Values as blocks of eight heights, the largest at the top."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1))] for value in values)
