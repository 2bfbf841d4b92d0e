"""What a page shows, from objects and a time: pure. Templates only put it into HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.crd import RESOURCES, ResourceKind
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import AnalysisRow, ModelEndpoint, StepStatus, VersionMeant
from finetune_api.modelversion import ModelVersion
from finetune_api.shared_fields import MetricResult
from finetune_api.training_log import TrainingPoint
from finetune_operator.cli import words
from finetune_operator.cli.ask import what_follows
from finetune_operator.cli.columns import resource_part
from finetune_operator.cli.describe import describe_job, describe_version
from finetune_operator.cli.describe_endpoint import describe_endpoint, planned
from finetune_operator.cli.errors import CommandError
from finetune_operator.cli.explain import Explanation, explain_endpoint, explain_job
from finetune_operator.cli.sections import Part
from finetune_operator.cli.snapshot import Snapshot
from finetune_operator.cli.target import Shell
from finetune_operator.cli.wishes import Verb, pause_changes, resume_changes, version_meant
from finetune_operator.core.ports import Manifest
from finetune_operator.core.times import parse_time
from finetune_operator.endpoint.rollout.plan import RolloutPlan, read_plan
from finetune_stats.drawing import IntervalBar, LineChart, interval_bar, line_chart

_TONES = {
    "good": ("Succeeded", "Idle", "Promoted", "Pass", "Serving"),
    "bad": ("Failed", "Rejected", "RolledBack", "RollingBack", "Fail", "Degraded"),
    "open": ("AwaitingApproval", "Paused", "Suspended", "Inconclusive", "Held"),
}
_EVENTS = 30


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A difference with its interval, better to the right."""

    label: str
    bar: IntervalBar
    words: str
    """The same in words."""
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Something that happened."""

    time: datetime | None
    what: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a person may ask of an endpoint now."""

    verb: Verb
    version: str
    """The version that is meant; "" for pause and resume."""
    effect: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page that is renewed as a whole. Its id is the same each time; without content it is hidden."""

    id: str
    title: str
    parts: Sequence[Part] = ()
    links: Sequence[str] = ()
    """Of the first part's rows, in their order."""
    progress: tuple[float, str] | None = None
    """From 0 to 1, and in words."""
    track: Sequence[tuple[str, str]] = ()
    """The stages of a rollout; each is done, now or ahead."""
    bars: Sequence[Bar] = ()
    chart: LineChart | None = None
    moments: Sequence[Moment] = ()
    commands: Sequence[tuple[str, str]] = ()
    offers: Sequence[Offer] = ()
    pages: Mapping[str, str] = field(default_factory=dict)
    """Links to more: words -> path."""
    note: str = ""

    @property
    def is_empty(self) -> bool:
        """Nothing is known of it."""
        rest = (self.progress, self.track, self.bars, self.chart, self.moments, self.commands, self.offers, self.pages)
        return not (any(rest) or self.note or any(not part.is_empty for part in self.parts))


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page."""

    title: str
    headline: str
    sections: Sequence[Section]


def tone_of(word: str) -> str:
    """How a phase or a verdict is coloured; the word itself is always there."""
    return next((tone for tone, found in _TONES.items() if word in found), "")


def path_of(kind: ResourceKind, *, namespace: str, name: str) -> str:
    """Where an object's page is."""
    word = next(each.word for each in RESOURCES if each.kind == kind)
    return f"/{namespace}/{word}/{name}"


def overview(found: Mapping[ResourceKind, Sequence[Manifest] | str], *, namespace: str, now: datetime) -> Page:
    """All objects; instead of those of a kind, why they cannot be listed."""
    sections = []
    for resource in sorted(RESOURCES, key=lambda each: each.kind != "ModelEndpoint"):
        listed, title = found[resource.kind], f"{resource.word.capitalize()}s"
        if isinstance(listed, str):
            sections.append(Section(id=resource.plural, title=title, note=listed))
            continue
        part = resource_part(list(listed), resource=resource, wide=False, with_namespace=not namespace, now=now)
        places = [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in listed]
        links = [path_of(resource.kind, namespace=space, name=name) for space, name in places]
        note = "" if listed else "none yet"
        sections.append(Section(id=resource.plural, title=title, parts=[part], links=links, note=note))
    where = f"namespace {namespace}" if namespace else "all namespaces"
    return Page(title=where, headline=f"Endpoints, jobs and versions of {where}", sections=sections)


def job_page(
    job: FineTuneJob,
    *,
    snapshot: Snapshot,
    curve: Sequence[TrainingPoint],
    events: Sequence[Manifest],
    shell: Shell,
    pages: Mapping[str, str],
) -> Page:
    """A job. `curve`: its training log, empty where that cannot be read from here; `pages`: its report and answers."""
    now, status = snapshot.now, job.status
    said = explain_job(job, now=now, shell=shell)
    losses = {
        "training loss": [(point.step, point.loss) for point in curve],
        "validation loss": [(point.step, point.validation_loss) for point in curve],
    }
    chart = line_chart(
        {name: [(step, loss) for step, loss in found if loss is not None] for name, found in losses.items()}
    )
    results = status.evaluation.results if status.evaluation is not None else []
    progress = None if snapshot.fraction is None else (snapshot.fraction, snapshot.training_words)
    report = status.evaluation is not None and not pages
    note = f"`{shell.finetune('report', job.metadata.name)}` says where the HTML report is" if report else ""
    described = [part for part in describe_job(job, events=(), now=now) if part.title != "Conditions"]
    return Page(
        title=f"job {job.metadata.name}",
        headline=said.headline,
        sections=[
            Section(id="training", title="Training", progress=progress, chart=chart),
            _said(said),
            Section(id="comparison", title="Comparison", bars=list(_compared(results)), pages=pages, note=note),
            Section(id="about", title="About", parts=described),
            Section(id="timeline", title="Timeline", moments=_timeline(events)),
        ],
    )


def version_page(version: ModelVersion, *, now: datetime, pages: Mapping[str, str]) -> Page:
    """A version."""
    verdict = version.spec.evaluation.verdict
    return Page(
        title=f"version {version.metadata.name}",
        headline=f"ModelVersion {version.metadata.name} ({verdict})",
        sections=[
            Section(
                id="comparison", title="Comparison", bars=list(_compared(version.spec.evaluation.results)), pages=pages
            ),
            Section(id="about", title="About", parts=describe_version(version, now=now)),
        ],
    )


def endpoint_page(
    endpoint: ModelEndpoint,
    *,
    jobs: Sequence[FineTuneJob],
    events: Sequence[Manifest],
    now: datetime,
    shell: Shell,
    acts: bool,
) -> Page:
    """An endpoint. `acts`: this console may pass on what a person asks for."""
    status = endpoint.status
    said = explain_endpoint(endpoint, now=now, shell=shell, jobs=jobs)
    apart = ("Analysis", "Versions", "Compared again", "Conditions")
    described = [part for part in describe_endpoint(endpoint, events=(), now=now) if not part.title.startswith(apart)]
    past = [
        *(Moment(time=each.time, what=f"{each.name} {each.outcome}", text=f"{each.reason} (by {each.by})")
          for each in status.versions),
        *(Moment(time=each.time, what=f"{each.version.name} compared again: {each.verdict}", text=each.reason)
          for each in status.comparisons),
    ]  # fmt: skip
    return Page(
        title=f"endpoint {endpoint.metadata.name}",
        headline=said.headline,
        sections=[
            _rollout(endpoint),
            _said(said, commands=not acts),
            Section(id="actions", title="What you can do here", offers=offers(endpoint) if acts else ()),
            Section(id="timeline", title="Timeline", moments=_timeline(events, past=past)),
            Section(id="about", title="About", parts=described),
        ],
    )


def offers(endpoint: ModelEndpoint) -> list[Offer]:
    """What the command line would take now, each with what comes of it."""
    status = endpoint.status
    served: list[VersionMeant | None] = [status.candidate, status.stable, *status.all_held]
    found = [
        Offer(verb=verb, version=version.name, effect=what_follows(endpoint, verb=verb, version=version))
        for version in served
        if version is not None
        for verb in _decisions(endpoint, version=version.name)
    ]
    if resume_changes(endpoint):
        return [*found, _offer(endpoint, verb="resume")]
    return [*found, *([_offer(endpoint, verb="pause")] if pause_changes(endpoint, by="") and status.step else [])]


def _offer(endpoint: ModelEndpoint, *, verb: Verb) -> Offer:
    return Offer(verb=verb, version="", effect=what_follows(endpoint, verb=verb, version=None))


def _decisions(endpoint: ModelEndpoint, *, version: str) -> Iterator[Verb]:
    decisions: tuple[Verb, ...] = ("approve", "reject", "rollback")
    for verb in decisions:
        try:
            version_meant(endpoint, verb=verb, name=version)
        except CommandError:
            continue
        yield verb


def _said(said: Explanation, *, commands: bool = True) -> Section:
    parts = [*said.parts, Part(title="Note", lines=said.notes)]
    return Section(id="now", title="What happens", parts=parts, commands=said.commands if commands else ())


def _rollout(endpoint: ModelEndpoint) -> Section:
    status, step = endpoint.status, endpoint.status.step
    plan = read_plan(status.plan) if status.plan is not None else None
    followed = plan if isinstance(plan, RolloutPlan) and step is not None else None
    progress = None
    if step is not None and step.needed:
        progress = min(1.0, step.samples / step.needed), f"{step.samples} of {step.needed} samples of each metric"
    return Section(
        id="rollout",
        title="Rollout",
        track=_track(followed, step=step) if followed is not None and step is not None else (),
        progress=progress,
        bars=list(_live(status.analysis, plan=followed)),
    )


def _track(plan: RolloutPlan, *, step: StepStatus) -> list[tuple[str, str]]:
    """The stages that the plan has, and where the rollout is."""
    stages = planned(plan)
    shadow = 1 if plan.shadow is not None else 0
    promotion = stages.index("promotion") if "promotion" in stages else 0
    here = {
        "Starting": -1,
        "Shadow": 0,
        "Canary": shadow + step.index,
        "Approval": promotion - 1,
        "Promoting": promotion,
        "Guard": promotion + 1,
    }.get(step.stage, -1)
    return [(text, "done" if at < here else "now" if at == here else "ahead") for at, text in enumerate(stages)]


def _live(rows: Iterable[AnalysisRow], *, plan: RolloutPlan | None) -> Iterator[Bar]:
    """More bad answers are worse, so that a rate that rises goes to the left."""
    limits = {metric.name: metric.max_regression for metric in (plan.metrics if plan is not None else ())}
    for row in rows:
        if row.low is None or row.high is None or row.candidate is None or row.baseline is None:
            continue
        limit = next((-value for name, value in limits.items() if name == row.metric), None)
        yield Bar(
            label=row.metric,
            bar=interval_bar(estimate=row.baseline - row.candidate, low=-row.high, high=-row.low, limit=limit),
            words=f"bad answers {words.number(row.candidate)} against {words.number(row.baseline)}, difference "
            f"{words.interval(row.low, row.high)}, {words.count(row.samples, 'sample')}",
            verdict=row.verdict,
        )


def _compared(rows: Iterable[MetricResult]) -> Iterator[Bar]:
    for row in sorted(rows, key=lambda row: row.report):
        if row.low is None or row.high is None or row.difference is None:
            continue
        ends = (row.low, row.high) if row.better == "Higher" else (-row.high, -row.low)
        estimate = row.difference if row.better == "Higher" else -row.difference
        yield Bar(
            label=row.metric,
            bar=interval_bar(estimate=estimate, low=ends[0], high=ends[1]),
            words=words.comparison_line(row).partition(": ")[2],
            verdict="reported" if row.report else row.verdict or "",
        )


def _timeline(events: Iterable[Manifest], *, past: Sequence[Moment] = ()) -> list[Moment]:
    """The newest first."""
    told = [
        Moment(
            time=parse_time(event.get("eventTime")), what=str(event.get("reason", "")), text=str(event.get("note", ""))
        )
        for event in events
    ]
    known = [each for each in (*told, *past) if each.time is not None]
    return sorted(known, key=lambda each: each.time or datetime.min, reverse=True)[:_EVENTS]
