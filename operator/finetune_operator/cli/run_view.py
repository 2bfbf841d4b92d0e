"""How a run is shown while it goes on: each stage, its time, and how far training is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_api.finetunejob import StageStatus
from finetune_operator.cli import words
from finetune_operator.cli.snapshot import Snapshot
from finetune_operator.cli.view import BAR_WIDTH, PLAIN_SECONDS

_HISTORY = 24
_BLOCKS = "▁▂▃▄▅▆▇█"
_MARKS = {"Complete": ("✓", "green"), "Failed": ("✗", "red"), "Pending": ("·", "dim"), "Queued": ("…", "yellow")}


class RunShows:
    """What a run has to show (view.Shows)."""

    def __init__(self) -> None:
        self._last: Snapshot | None = None
        self._told: datetime | None = None
        self._progress = ""
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._spinner = Spinner("dots", style="cyan")

    def news(self, seen: Snapshot) -> Iterator[tuple[datetime, str]]:
        """Stages that begin again or end, what the job says, and progress now and then."""
        before, self._last = self._last, seen
        known = {(stage.name, stage.state, stage.attempt) for stage in (before.stages if before else ())}
        for stage in seen.stages:
            if (stage.name, stage.state, stage.attempt) in known:
                continue
            if stage.state in ("Complete", "Failed"):
                took = f" in {seen.took(stage)}" if stage.start_time is not None else ""
                result = words.stage_result(stage.result)
                yield seen.now, f"{stage.name} {stage.state.lower()}{took}" + (f": {result}" if result else "")
            elif stage.state == "Running" and stage.attempt > 1:
                yield seen.now, f"{stage.name}: attempt {stage.attempt}"
        message = seen.job.status.message or ""
        if message and (before is None or message != before.job.status.message):
            yield seen.now, f"{seen.phase}: {message}"
        text = seen.training_words
        # The first line waits until there is a loss to tell: what comes after it has a pause before it.
        is_due = (
            seen.loss is not None if self._told is None else (seen.now - self._told).total_seconds() >= PLAIN_SECONDS
        )
        if seen.phase == "Training" and text not in ("", self._progress) and is_due:
            self._told, self._progress = seen.now, text
            yield seen.now, f"Train: {'' if seen.fraction is None else f'{seen.fraction:.0%} '}{text}"

    def drawing(self, seen: Snapshot) -> Sequence[RenderableType]:
        """A line for each stage below what is trained, and what holds it."""
        if seen.trainer is None:
            self._losses.clear()
        elif seen.loss is not None and (not self._losses or self._losses[-1] != seen.loss):
            self._losses.append(seen.loss)
        spec = seen.job.spec
        lora = f" r={spec.method.lora.rank}" if spec.method.lora else ""
        about = f"{spec.model.uri.rstrip('/').rsplit('/', 1)[-1]} · {spec.method.type}{lora} · {spec.model.task}"
        grid = Table.grid(padding=(0, 2))
        for column in range(4):
            grid.add_column(no_wrap=column < 3)
        for stage in seen.stages:
            running = stage.state == "Running"
            name = f"{stage.name} ({stage.attempt})" if stage.attempt > 1 else stage.name
            grid.add_row(
                self._spinner if running else Text(*_MARKS[stage.state]),
                Text(name, style="bold" if running else "dim" if stage.state == "Pending" else ""),
                Text(seen.took(stage), style="dim"),
                self._detail(stage, seen),
            )
        note = _note(seen)
        title = Text.assemble((seen.job.metadata.name, "bold"), "  ", (about, "dim"))
        return [title, grid, *([Text(note, style="yellow")] if note else [])]

    def _detail(self, stage: StageStatus, seen: Snapshot) -> RenderableType:
        if stage.name != "Train" or stage.state != "Running" or seen.fraction is None:
            return Text(words.stage_result(stage.result))
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=1.0, completed=seen.fraction, width=BAR_WIDTH),
            Text(f"{seen.fraction:4.0%}", style="bold"),
            Text(seen.training_words),
            Text(_sparkline(self._losses), style="cyan"),
        )
        return row


def _note(seen: Snapshot) -> str:
    """What is worth saying beyond the stages: waits, restarts, ends."""
    condition = seen.job.status.condition("Reconciling") or seen.job.status.condition("Stalled")
    if condition is None or condition.reason in ("Preparing", "Training", "Evaluating", "Pending"):
        return ""
    return f"{condition.reason}: {condition.message}"


def _sparkline(values: deque[float]) -> str:
    """Values as blocks of eight heights, the largest at the top."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1))] for value in values)
