"""How `finetune up` shows its endpoints: a live view in a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.modelendpoint import AnalysisRow, ModelEndpoint, VersionOutcome
from finetune_operator.cli import words
from finetune_operator.cli.tables import table

_PLAIN_SECONDS = 15.0
"""A plain line of samples at least this long after the one before."""
_BAR_WIDTH = 28
_STYLES = {"Idle": "green", "Empty": "dim", "RollingBack": "red", "Paused": "yellow", "AwaitingApproval": "yellow"}
_OUTCOMES = 3


@dataclass(frozen=True, kw_only=True)
class EndpointView:
    """An endpoint as it is at one moment."""

    endpoint: ModelEndpoint
    url: str
    now: datetime
    jobs: tuple[tuple[str, str], ...] = ()
    """Jobs for it that go on: name and phase."""

    @property
    def name(self) -> str:
        """The endpoint's."""
        return self.endpoint.metadata.name

    @property
    def phase(self) -> str:
        """The endpoint's; Empty before it was looked at."""
        return self.endpoint.status.phase or "Empty"

    @property
    def answers(self) -> bool:
        """Whether clients are served."""
        conditions = self.endpoint.status.conditions
        return any(each.type == "Available" and each.status == "True" for each in conditions)

    @property
    def step_words(self) -> str:
        """`step five (5 %), 212 of 300 samples`; "" where nothing is counted."""
        step = self.endpoint.status.step
        if step is None or not (step.needed or step.samples):
            return ""
        share = f" ({step.percent:g} %)" if step.percent is not None else ""
        of = f" of {step.needed}" if step.needed else ""
        return f"{step.name}{share}, {step.samples}{of} samples"


class UpView(Protocol):
    """Shows endpoints. `show` is called several times a second."""

    def show(self, views: Sequence[EndpointView]) -> None:
        """The endpoints as they are now."""
        ...

    def say(self, text: str) -> None:
        """Something that happened, in a line of its own."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class PlainUpView:
    """Lines with a time: one for each thing that changes, and of samples now and then."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._last: dict[str, EndpointView] = {}
        self._told: dict[str, datetime] = {}

    def show(self, views: Sequence[EndpointView]) -> None:
        """Print what is new."""
        for view in views:
            self._show(view, before=self._last.get(view.name))
            self._last[view.name] = view

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is held back."""

    def _show(self, view: EndpointView, *, before: EndpointView | None) -> None:
        status, old = view.endpoint.status, before.endpoint.status if before is not None else None
        for job in view.jobs:
            if before is None or job not in before.jobs:
                self._line(view, f"job {job[0]}: {job[1]}")
        for outcome in status.versions[len(old.versions) if old is not None else len(status.versions) :]:
            self._line(view, f"{outcome.name} {_outcome(outcome)}")
        if status.message and (old is None or (status.phase, status.message) != (old.phase, old.message)):
            self._line(view, f"{view.phase}: {status.message}")
        if view.answers and (before is None or not before.answers):
            self._line(view, f"listening at {view.url}")
        told = self._told.get(view.name)
        if view.step_words and (told is None or (view.now - told).total_seconds() >= _PLAIN_SECONDS):
            self._told[view.name] = view.now
            self._line(view, view.step_words)

    def _line(self, view: EndpointView, text: str) -> None:
        self.say(f"{view.now.astimezone():%H:%M:%S} {view.name}: {text}")


class LiveUpView:
    """A drawing that is renewed in place: phase, versions, how far the step is, and what was measured."""

    def __init__(self, *, console: Console | None = None, hint: str = "") -> None:
        self._console = console or Console()
        self._hint = hint
        self._last: Sequence[EndpointView] = ()
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def show(self, views: Sequence[EndpointView]) -> None:
        """Draw the endpoints."""
        self._last = views
        self._live.update(self.render(views))

    def say(self, text: str) -> None:
        """A line above the drawing."""
        self._console.print(Text(text))

    def close(self) -> None:
        """Leave the last drawing on the screen."""
        self._hint = ""
        self._live.update(self.render(self._last))
        self._live.stop()

    def render(self, views: Sequence[EndpointView]) -> RenderableType:
        """The drawing."""
        parts = [part for view in views for part in (*_drawn(view), Text())]
        return Group(*parts, Text(self._hint, style="dim")) if self._hint else Group(*parts)


def _drawn(view: EndpointView) -> list[RenderableType]:
    status = view.endpoint.status
    style = _STYLES.get(view.phase, "cyan")
    where = Text(f"  {view.url}", style="bold" if view.answers else "dim")
    lines: list[RenderableType] = [Text.assemble((view.name, "bold"), "  ", (view.phase, style), where)]
    grid = Table.grid(padding=(0, 2))
    for title, served in (("stable", status.stable), ("candidate", status.candidate), ("previous", status.previous)):
        if served is not None:
            grid.add_row(Text(title, style="dim"), Text(served.name))
    lines.append(grid)
    if view.step_words:
        lines.append(_step(view))
    if status.message:
        lines.append(Text(status.message))
    if status.analysis:
        lines.append(Text(_analysis(status.analysis), style="dim"))
    lines += [Text(f"{each.name} {_outcome(each)}", style="dim") for each in status.versions[-_OUTCOMES:]]
    lines += [Text(f"job {name}: {phase}", style="cyan") for name, phase in view.jobs]
    return lines


def _step(view: EndpointView) -> RenderableType:
    step = view.endpoint.status.step
    row = Table.grid(padding=(0, 1))
    if step is not None and step.needed:
        done = min(1.0, step.samples / step.needed)
        row.add_row(ProgressBar(total=1.0, completed=done, width=_BAR_WIDTH), Text(view.step_words))
    else:
        row.add_row(Text(view.step_words))
    return row


def _analysis(rows: Sequence[AnalysisRow]) -> str:
    return table(
        header=("METRIC", "STABLE", "CANDIDATE", "SAMPLES", "VERDICT"),
        rows=[
            (row.metric, words.number(row.baseline), words.number(row.candidate), str(row.samples), row.verdict)
            for row in rows
        ],
    )


def _outcome(outcome: VersionOutcome) -> str:
    word = {"RolledBack": "was rolled back"}.get(outcome.outcome, f"was {outcome.outcome.lower()}")
    return f"{word}: {outcome.reason}" + (f" (by {outcome.by})" if outcome.by != "operator" else "")
