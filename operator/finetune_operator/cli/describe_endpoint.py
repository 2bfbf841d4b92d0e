"""An endpoint in parts: what serves, how the rollout goes, on what it is judged, and what became of the versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from finetune_api.modelendpoint import (
    AnalysisRow,
    ComparisonStatus,
    ModelEndpoint,
    ServedVersion,
    StepStatus,
    VersionOutcome,
)
from finetune_operator.cli import sections, words
from finetune_operator.cli.sections import Part
from finetune_operator.cli.tables import age
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.requests import read_requests
from finetune_operator.endpoint.rollout.plan import RolloutPlan, read_plan
from finetune_operator.endpoint.void_requests import Decision, decisions_of, names_of, void_decisions

_OUTCOMES = 20
_VERBS: dict[Decision, str] = {"approve": "approve", "reject": "reject", "rollback": "roll back"}


def describe_endpoint(endpoint: ModelEndpoint, *, events: Iterable[Manifest], now: datetime) -> list[Part]:
    """An endpoint in parts. `events`: those about it."""
    spec, status = endpoint.spec, endpoint.status
    routes = status.routes
    acknowledged = f", served by {routes.acknowledged} of {words.count(routes.gateways, 'gateway')}" if routes else ""
    parts = [
        Part(
            fields={
                "Name": endpoint.metadata.name,
                "Namespace": endpoint.metadata.namespace,
                "Created": sections.when(endpoint.metadata.creation_timestamp, now=now),
                "Phase": status.phase or "Empty",
                "Message": status.message or "",
                **sections.next_(status.next, now=now),
                "Task": spec.task,
                "Runtime": _runtime(endpoint),
                "Pinned": spec.version or "",
                "Stable": _served(status.stable, now=now),
                "Candidate": _served(status.candidate, now=now),
                "Previous": _served(status.previous, now=now),
                "Routes": f"epoch {routes.epoch}{acknowledged}" if routes else "",
                "Requests": _requests(endpoint),
            }
        )
    ]
    if status.step is not None:
        parts.append(_rollout(endpoint, step=status.step, now=now))
    if status.analysis:
        parts.append(_analysis(status.analysis, time=status.analysis_time, now=now))
    return [
        *parts,
        _comparisons(status.comparisons, now=now),
        _outcomes(status.versions, now=now),
        sections.conditions(status.conditions, now=now),
        sections.events(events, now=now),
    ]


def _comparisons(found: Sequence[ComparisonStatus], *, now: datetime) -> Part:
    """Of versions that were evaluated again before they were tried, newest first."""
    rows = [
        (each.version.name, each.baseline.name, each.verdict, age(since=each.time, now=now), each.reason)
        for each in reversed(found)
    ]
    return Part(title="Compared again", header=("NAME", "WITH", "VERDICT", "AGE", "REASON"), rows=rows)


def _runtime(endpoint: ModelEndpoint) -> str:
    serving = endpoint.spec.serving
    gpus = f" with {words.count(serving.gpus, 'GPU')} each" if serving.gpus else ""
    return f"{serving.runtime}, {words.count(serving.replicas or 1, 'replica')} of each version{gpus}"


def _served(version: ServedVersion | None, *, now: datetime) -> str:
    if version is None:
        return ""
    since = f", for {age(since=version.since, now=now)}" if version.since is not None else ""
    doubt = f", not proven: {version.unproven}" if version.unproven else ""
    return f"{version.name} ({version.digest[:19]}{since}){doubt}"


def _requests(endpoint: ModelEndpoint) -> str:
    """What the annotations ask for now, whether it has an effect or not."""
    requests, served = read_requests(endpoint.metadata.annotations), names_of(endpoint.status)
    void = void_decisions(endpoint)
    asked = [
        f"{_VERBS[decision]} {served.get(uid, uid)}" + (f" (void: {void[decision]})" if decision in void else "")
        for decision, uid in decisions_of(requests).items()
    ]
    asked += ["pause"] if requests.pause else []
    return f"{', '.join(asked)} (by {requests.who})" if asked else ""


def _rollout(endpoint: ModelEndpoint, *, step: StepStatus, now: datetime) -> Part:
    plan = read_plan(endpoint.status.plan) if endpoint.status.plan is not None else None
    samples = f"{step.samples} of {step.needed} needed" if step.needed else str(step.samples) if step.samples else ""
    fields = {
        "Stage": f"{step.stage}" + (f" {step.name}" if step.stage == "Canary" else ""),
        "Share": "" if step.percent is None else f"{step.percent:g} %",
        "Since": sections.when(step.start_time, now=now),
        "Samples": samples,
        "Held": step.held or "",
    }
    if isinstance(plan, RolloutPlan):
        fields["Plan"] = " -> ".join(planned(plan))
        fields["Policy"] = f"onRegression {plan.on_regression}, onInconclusive {plan.on_inconclusive}"
    return Part(title="Rollout", fields=fields)


def planned(plan: RolloutPlan) -> list[str]:
    """The stages in order: `shadow 20 %`, `internal 80 %`, `five 5 %`, `approval`, `promotion`, `guard 1 h 0 min`."""
    if plan.fast:
        return ["straight back to a version that was stable before"]
    stages = [f"shadow {plan.shadow.percent:g} %"] if plan.shadow else []
    stages += [f"{step.name} {step.percent:g} %" for step in plan.steps]
    stages += ["approval"] if plan.approval == "Manual" else []
    stages += ["promotion"]
    stages += [f"guard {words.seconds(plan.guard_seconds)}"] if plan.guard_seconds else []
    return stages


def _analysis(rows: list[AnalysisRow], *, time: datetime | None, now: datetime) -> Part:
    written = f" ({age(since=time, now=now)} ago)" if time is not None else ""
    lines = [
        (
            row.metric,
            words.number(row.baseline),
            words.number(row.candidate),
            "" if row.low is None or row.high is None else words.interval(row.low, row.high),
            str(row.samples),
            row.verdict,
            row.reason or "",
        )
        for row in rows
    ]
    header = ("METRIC", "BAD, STABLE", "BAD, CANDIDATE", "DIFFERENCE", "SAMPLES", "VERDICT", "REASON")
    return Part(title=f"Analysis{written}", header=header, rows=lines)


def _outcomes(versions: list[VersionOutcome], *, now: datetime) -> Part:
    """Newest first."""
    rows = [
        (each.name, each.outcome, age(since=each.time, now=now), each.by, each.reason)
        for each in reversed(versions[-_OUTCOMES:])
    ]
    return Part(title="Versions", header=("NAME", "OUTCOME", "AGE", "BY", "REASON"), rows=rows)
