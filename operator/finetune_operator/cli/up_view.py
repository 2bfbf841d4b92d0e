"""How `finetune up` shows its endpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.modelendpoint import AnalysisRow, ModelEndpoint, VersionOutcome
from finetune_operator.cli import words
from finetune_operator.cli.tables import table
from finetune_operator.cli.view import BAR_WIDTH, PLAIN_SECONDS

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
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Where its processes that run say their metrics: `the gateway`, `the server of v2` -> URL."""

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


class UpShows:
    """What endpoints have to show (view.Shows)."""

    def __init__(self) -> None:
        self._last: dict[str, EndpointView] = {}
        self._told: dict[str, datetime] = {}

    def news(self, seen: Sequence[EndpointView]) -> Iterator[tuple[datetime, str]]:
        """A line for each thing that changes, and of samples now and then."""
        for view in seen:
            for text in self._news(view, before=self._last.get(view.name)):
                yield view.now, f"{view.name}: {text}"
            self._last[view.name] = view

    def drawing(self, seen: Sequence[EndpointView]) -> Sequence[RenderableType]:
        """Phase, versions, how far the step is, and what was measured."""
        return [part for view in seen for part in (*_drawn(view), Text())]

    def _news(self, view: EndpointView, *, before: EndpointView | None) -> Iterator[str]:
        status, old = view.endpoint.status, before.endpoint.status if before is not None else None
        yield from (f"job {job[0]}: {job[1]}" for job in view.jobs if before is None or job not in before.jobs)
        for outcome in status.versions[len(old.versions) if old is not None else len(status.versions) :]:
            yield f"{outcome.name} {_outcome(outcome)}"
        if status.message and (old is None or (status.phase, status.message) != (old.phase, old.message)):
            yield f"{view.phase}: {status.message}"
        if view.answers and (before is None or not before.answers):
            yield f"listening at {view.url}"
        for whose, url in view.metrics.items():
            if before is None or before.metrics.get(whose) != url:
                yield f"metrics of {whose}: {url}"
        told = self._told.get(view.name)
        if view.step_words and (told is None or (view.now - told).total_seconds() >= PLAIN_SECONDS):
            self._told[view.name] = view.now
            yield view.step_words


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
    lines += [Text(f"metrics of {whose}: {url}", style="dim") for whose, url in view.metrics.items()]
    return lines


def _step(view: EndpointView) -> RenderableType:
    step = view.endpoint.status.step
    row = Table.grid(padding=(0, 1))
    if step is not None and step.needed:
        done = min(1.0, step.samples / step.needed)
        row.add_row(ProgressBar(total=1.0, completed=done, width=BAR_WIDTH), Text(view.step_words))
    else:
        row.add_row(Text(view.step_words))
    return row


def _analysis(rows: Sequence[AnalysisRow]) -> str:
    return table(
        header=("METRIC", "BAD, STABLE", "BAD, CANDIDATE", "SAMPLES", "VERDICT"),
        rows=[
            (row.metric, words.number(row.baseline), words.number(row.candidate), str(row.samples), row.verdict)
            for row in rows
        ],
    )


def _outcome(outcome: VersionOutcome) -> str:
    word = {"RolledBack": "was rolled back"}.get(outcome.outcome, f"was {outcome.outcome.lower()}")
    return f"{word}: {outcome.reason}" + (f" (by {outcome.by})" if outcome.by != "operator" else "")
