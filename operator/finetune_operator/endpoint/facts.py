"""Steps of the machine as changes of recorded facts: status in, status out."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_api.base import ObjectMeta
from finetune_api.modelendpoint import (
    ApprovalStatus,
    ComparisonStatus,
    HeldVersion,
    ModelEndpointStatus,
    Outcome,
    RolloutStage,
    ServedVersion,
    StepStatus,
    VersionOutcome,
)
from finetune_api.modelversion import ModelVersion
from finetune_operator.core.times import whole_second
from finetune_operator.endpoint.approvals import used
from finetune_operator.endpoint.names import server_name
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.rollout.choose import MOST_OUTCOMES, outcome_of
from finetune_operator.endpoint.rollout.plan import RolloutPlan, stored
from finetune_operator.endpoint.rollout.proof import doubted, with_proof
from finetune_operator.endpoint.rollout.routing import routes_of, same_content
from finetune_operator.endpoint.rollout.state import Starting, Trying

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
        reason = f"{version.metadata.name} is newer"
        status = with_outcome(status, older.metadata, outcome="Superseded", reason=reason, now=now)
    candidate = with_proof(observed, served(observed, version), version=version, fast=plan.fast)
    step = StepStatus(stage="Starting", name="starting", start_time=now)
    approval = used(status, uid=candidate.uid)
    return changed(status, candidate=candidate, plan=stored(plan), step=step, analysis=[], approval=approval)


def served(observed: ObservedEndpoint, version: ModelVersion) -> ServedVersion:
    """A version as one that is served from now on."""
    return ServedVersion(
        name=version.metadata.name,
        uid=version.metadata.uid,
        digest=version.spec.artifact.digest,
        revision=server_name(endpoint=observed.endpoint.metadata.name, version_uid=version.metadata.uid),
        since=whole_second(observed.now),
    )


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


def entered_next(
    observed: ObservedEndpoint, state: Trying, *, by: ApprovalStatus | None = None, doubt: str | None = None
) -> ModelEndpointStatus:
    """The candidate moves on by one stage; after the last one it is promoted. `by`: the approval that it goes on by;
    `doubt`: why it is not proven, though it goes on."""
    candidate = doubted(state.candidate, doubt) if doubt is not None else state.candidate
    order = stages_of(state.plan)
    stage, index = order[order.index((state.step.stage, state.step.index)) + 1]
    if stage == "Promoting" or observed.endpoint.status.stable is None:
        # Where nothing serves yet there is nothing to compare with, and nobody to harm.
        who = by.by if by is not None else "operator"
        after = promoted(observed, candidate=candidate, plan=state.plan, by=who)
    else:
        after = changed(_entered(observed, state, stage=stage, index=index), candidate=candidate)
    return changed(after, approval=used(after, uid=candidate.uid)) if by is not None else after


def _entered(observed: ObservedEndpoint, state: Trying, *, stage: RolloutStage, index: int) -> ModelEndpointStatus:
    status, plan = observed.endpoint.status, state.plan
    step = StepStatus(stage=stage, index=index, name=stage.lower(), start_time=whole_second(observed.now))
    if stage == "Shadow" and plan.shadow is not None:
        step = step.model_copy(update={"percent": plan.shadow.percent, "needed": plan.shadow.min_samples})
    elif stage == "Canary":
        planned = plan.steps[index]
        step = step.model_copy(update={"name": planned.name, "percent": planned.percent, "needed": planned.min_samples})
    elif stage == "Approval":
        # The routes stay as they are, and so does what is counted, and what was accepted of it.
        step = step.model_copy(update=state.step.model_dump(include={"percent", "since_epoch", "accepted"}))
        return changed(status, step=step)
    after = changed(status, step=step, analysis=[])
    return changed(after, step=step.model_copy(update={"since_epoch": _epoch_of(after, observed=observed, plan=plan)}))


def promoted(
    observed: ObservedEndpoint, *, candidate: ServedVersion, plan: RolloutPlan, by: str = "operator"
) -> ModelEndpointStatus:
    """The candidate becomes the stable version; the one before stays warm until the guard is over."""
    status, now = observed.endpoint.status, whole_second(observed.now)
    unknown = "stable before" if plan.fast else "not known to be proven: begun by an operator that did not record it"
    reason = candidate.unproven or ("proven" if candidate.proven else unknown)
    status = with_outcome(status, candidate, outcome="Promoted", reason=reason, now=now, by=by, proven=candidate.proven)
    step = StepStatus(
        stage="Promoting", name="promoting", percent=100.0, start_time=now, since_epoch=observed.next_epoch
    )
    return changed(
        status,
        stable=candidate.model_copy(update={"since": now}),
        previous=_worth_keeping(status),
        candidate=None,
        step=step,
        analysis=[],
    )


def guarding(observed: ObservedEndpoint, *, promoting: StepStatus) -> ModelEndpointStatus:
    """All gateways send everybody to the new stable version, which is watched from the promotion on: the first requests
    of its users, and the first answers to held-out prompts, are counted once."""
    status = observed.endpoint.status
    step = StepStatus(
        stage="Guard",
        name="guard",
        percent=100.0,
        start_time=whole_second(observed.now),
        since_epoch=promoting.since_epoch,
    )
    return changed(status, step=step)


def settled(status: ModelEndpointStatus) -> ModelEndpointStatus:
    """Nothing is under way any more."""
    return changed(status, candidate=None, previous=None, plan=None, step=None, analysis=[], analysis_time=None)


def with_doubt(status: ModelEndpointStatus, version: ServedVersion) -> ModelEndpointStatus:
    """The status after what is watched came into doubt; where it was promoted already, that is recorded as unproven."""
    if status.candidate is not None:
        return changed(status, candidate=version)
    last, doubt = outcome_of(status, version.uid), {"proven": False, "reason": version.unproven}
    versions = [each.model_copy(update=doubt) if each is last else each for each in status.versions]
    return changed(status, stable=version, versions=versions)


def left_candidate(
    observed: ObservedEndpoint, state: Trying, *, outcome: Outcome, reason: str, by: str = "operator"
) -> ModelEndpointStatus:
    """The candidate is given up; whoever was sent to it goes back to stable."""
    status, now = observed.endpoint.status, observed.now
    status = with_outcome(status, state.candidate, outcome=outcome, reason=reason, now=now, by=by)
    if isinstance(state, Starting):
        return settled(status)
    return changed(status, candidate=None, step=_rolling_back(now))


def left_promoted(
    observed: ObservedEndpoint, *, bad: ServedVersion, good: ServedVersion, reason: str, by: str = "operator"
) -> ModelEndpointStatus:
    """The newly promoted version is given up for the one before, which is still warm."""
    status, now = observed.endpoint.status, observed.now
    status = with_outcome(status, bad, outcome="RolledBack", reason=reason, now=now, by=by)
    return changed(status, stable=good, previous=None, step=_rolling_back(now))


def with_outcome(
    status: ModelEndpointStatus,
    version: ServedVersion | HeldVersion | ObjectMeta,
    *,
    outcome: Outcome,
    reason: str,
    now: datetime,
    by: str = "operator",
    proven: bool | None = None,
) -> ModelEndpointStatus:
    """The status with what became of a version; its last outcome is what counts."""
    record = VersionOutcome(
        name=version.name,
        uid=version.uid,
        outcome=outcome,
        reason=reason,
        time=whole_second(now),
        by=by,
        proven=proven,
    )
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
    return StepStatus(stage="RollingBack", name="rolling-back", start_time=whole_second(now))


def _epoch_of(status: ModelEndpointStatus, *, observed: ObservedEndpoint, plan: RolloutPlan) -> int:
    """The epoch in which the gateways will serve the routes of this status."""
    wanted = routes_of(observed, status=status, plan=plan, epoch=max(1, observed.epoch))
    same = wanted is not None and observed.routes is not None and same_content(wanted, observed.routes)
    return observed.epoch if same and not observed.overtaken else observed.next_epoch
