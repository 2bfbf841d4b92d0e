"""Steps of the machine as changes of recorded facts: status in, status out."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_api.modelendpoint import (
    ComparisonStatus,
    ModelEndpointStatus,
    Outcome,
    RolloutStage,
    ServedVersion,
    StepStatus,
    VersionOutcome,
)
from finetune_api.modelversion import ModelVersion
from finetune_operator.endpoint.names import server_name
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.plan import RolloutPlan, stored
from finetune_operator.endpoint.requests import read_requests
from finetune_operator.endpoint.routing import routes_of, same_content
from finetune_operator.job.times import whole_second

MOST_OUTCOMES = 100
"""Outcomes that a status remembers; the oldest go first."""

MOST_COMPARISONS = 10
"""Comparisons that a status remembers; the oldest go first."""

StageIndex = tuple[RolloutStage, int]


def changed(status: ModelEndpointStatus, **facts: Any) -> ModelEndpointStatus:
    """The status with other facts."""
    return status.model_copy(update=facts)


def begun(
    *, observed: ObservedEndpoint, version: ModelVersion, plan: RolloutPlan, passed_over: tuple[ModelVersion, ...]
) -> ModelEndpointStatus:
    """A version becomes the candidate; older ones that were waiting are superseded."""
    status, now = observed.endpoint.status, whole_second(observed.now)
    for older in passed_over:
        status = with_outcome(
            status,
            name=older.metadata.name,
            uid=older.metadata.uid,
            outcome="Superseded",
            reason=f"{version.metadata.name} is newer",
            now=now,
        )
    candidate = ServedVersion(
        name=version.metadata.name,
        uid=version.metadata.uid,
        digest=version.spec.artifact.digest,
        revision=server_name(endpoint=observed.endpoint.metadata.name, version_uid=version.metadata.uid),
        since=now,
    )
    step = StepStatus(stage="Starting", name="starting", start_time=now)
    return changed(status, candidate=candidate, plan=stored(plan), step=step, analysis=[])


def stages_of(plan: RolloutPlan) -> tuple[StageIndex, ...]:
    """The stages that a candidate goes through, in order."""
    last = max(0, len(plan.steps) - 1)
    return (
        ("Starting", 0),
        *((("Shadow", 0),) if plan.shadow else ()),
        *(("Canary", index) for index in range(len(plan.steps))),
        *((("Approval", last),) if plan.approval == "Manual" else ()),
        ("Promoting", 0),
    )


def entered_next(*, observed: ObservedEndpoint, plan: RolloutPlan) -> ModelEndpointStatus:
    """The candidate moves on by one stage; after the last one it is promoted."""
    status = observed.endpoint.status
    assert status.step is not None  # noqa: S101 - only called while a candidate is under way
    if status.stable is None:
        return promoted(observed)  # nothing serves yet: there is nothing to compare with, and nobody to harm
    order = stages_of(plan)
    stage, index = order[order.index((status.step.stage, status.step.index)) + 1]
    if stage == "Promoting":
        return promoted(observed, by=_approver(observed=observed, plan=plan))
    return _entered(observed=observed, plan=plan, stage=stage, index=index)


def _entered(*, observed: ObservedEndpoint, plan: RolloutPlan, stage: RolloutStage, index: int) -> ModelEndpointStatus:
    status = observed.endpoint.status
    step = StepStatus(stage=stage, index=index, name=stage.lower(), start_time=whole_second(observed.now))
    if stage == "Shadow" and plan.shadow is not None:
        step = step.model_copy(update={"percent": plan.shadow.percent, "needed": plan.shadow.min_samples})
    elif stage == "Canary":
        planned = plan.steps[index]
        step = step.model_copy(update={"name": planned.name, "percent": planned.percent, "needed": planned.min_samples})
    elif stage == "Approval" and status.step is not None:
        # The routes stay as they are, and so does what is counted.
        step = step.model_copy(update={"percent": status.step.percent, "since_epoch": status.step.since_epoch})
        return changed(status, step=step)
    after = changed(status, step=step, analysis=[])
    return changed(after, step=step.model_copy(update={"since_epoch": _epoch_of(after, observed=observed, plan=plan)}))


def _approver(*, observed: ObservedEndpoint, plan: RolloutPlan) -> str:
    """Who lets the candidate be promoted, for the record."""
    requests, candidate = read_requests(observed.endpoint.metadata.annotations), observed.endpoint.status.candidate
    approved = plan.approval == "Manual" and candidate is not None and requests.approve == candidate.uid
    return requests.who if approved else "operator"


def promoted(observed: ObservedEndpoint, *, by: str = "operator") -> ModelEndpointStatus:
    """The candidate becomes the stable version; the one before stays warm until the guard is over."""
    status, now = observed.endpoint.status, whole_second(observed.now)
    candidate = status.candidate
    assert candidate is not None  # noqa: S101 - only called while a candidate is under way
    status = with_outcome(
        status,
        name=candidate.name,
        uid=candidate.uid,
        outcome="Promoted",
        reason="proven" if status.stable is not None else "first version",
        now=now,
        by=by,
    )
    step = StepStatus(
        stage="Promoting", name="promoting", percent=100.0, start_time=now, since_epoch=observed.epoch + 1
    )
    return changed(
        status,
        stable=candidate.model_copy(update={"since": now}),
        previous=_worth_keeping(status),
        candidate=None,
        step=step,
        analysis=[],
    )


def guarding(*, observed: ObservedEndpoint) -> ModelEndpointStatus:
    """All gateways send everybody to the new stable version: from now on it is watched."""
    status = observed.endpoint.status
    step = StepStatus(
        stage="Guard",
        name="guard",
        percent=100.0,
        start_time=whole_second(observed.now),
        since_epoch=observed.epoch,
    )
    return changed(status, step=step)


def settled(status: ModelEndpointStatus) -> ModelEndpointStatus:
    """Nothing is under way any more."""
    return changed(status, candidate=None, previous=None, plan=None, step=None, analysis=[], analysis_time=None)


def left_candidate(
    *, observed: ObservedEndpoint, outcome: Outcome, reason: str, by: str = "operator"
) -> ModelEndpointStatus:
    """The candidate is given up; whoever was sent to it goes back to stable."""
    status, now = observed.endpoint.status, whole_second(observed.now)
    candidate = status.candidate
    assert candidate is not None  # noqa: S101 - only called while a candidate is under way
    status = with_outcome(
        status, name=candidate.name, uid=candidate.uid, outcome=outcome, reason=reason, now=now, by=by
    )
    if status.step is None or status.step.stage == "Starting":
        return settled(status)
    return changed(status, candidate=None, step=_rolling_back(now))


def left_promoted(*, observed: ObservedEndpoint, reason: str, by: str = "operator") -> ModelEndpointStatus:
    """The newly promoted version is given up for the one before, which is still warm."""
    status, now = observed.endpoint.status, whole_second(observed.now)
    bad, good = status.stable, status.previous
    assert bad is not None  # noqa: S101 - only called under guard
    assert good is not None  # noqa: S101
    status = with_outcome(status, name=bad.name, uid=bad.uid, outcome="RolledBack", reason=reason, now=now, by=by)
    return changed(status, stable=good, previous=None, step=_rolling_back(now))


def with_outcome(
    status: ModelEndpointStatus,
    *,
    name: str,
    uid: str,
    outcome: Outcome,
    reason: str,
    now: datetime,
    by: str = "operator",
) -> ModelEndpointStatus:
    """The status with what became of a version; its last outcome is what counts."""
    record = VersionOutcome(name=name, uid=uid, outcome=outcome, reason=reason, time=now, by=by)
    return changed(status, versions=[*status.versions, record][-MOST_OUTCOMES:])


def with_comparison(status: ModelEndpointStatus, comparison: ComparisonStatus) -> ModelEndpointStatus:
    """The status with the result of a comparison."""
    return changed(status, comparisons=[*status.comparisons, comparison][-MOST_COMPARISONS:])


def _worth_keeping(status: ModelEndpointStatus) -> ServedVersion | None:
    """The stable version, unless somebody has just rolled it back: nothing should fall back to that."""
    stable = status.stable
    if stable is None:
        return None
    last = next((each.outcome for each in reversed(status.versions) if each.uid == stable.uid), None)
    return None if last == "RolledBack" else stable


def _rolling_back(now: datetime) -> StepStatus:
    return StepStatus(stage="RollingBack", name="rolling-back", start_time=now)


def _epoch_of(status: ModelEndpointStatus, *, observed: ObservedEndpoint, plan: RolloutPlan) -> int:
    """The epoch in which the gateways will serve the routes of this status."""
    wanted = routes_of(
        endpoint=observed.endpoint,
        status=status,
        plan=plan,
        epoch=max(1, observed.epoch),
        server_urls=observed.server_urls,
    )
    same = wanted is not None and observed.routes is not None and same_content(wanted, observed.routes)
    return observed.epoch if same else observed.epoch + 1
