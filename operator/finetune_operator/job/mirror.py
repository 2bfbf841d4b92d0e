"""A job with an endpoint goes on as its version does: the endpoint decides, the job shows it.

The job ends when its version's guard is over, or when the version is given up. What becomes of it later shows on the
endpoint only.
"""

from __future__ import annotations

from finetune_api.base import VersionReference
from finetune_api.finetunejob import FineTuneJobStatus, Phase, RolloutStatus
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.job.conditions import Summary
from finetune_operator.job.decision import Draft
from finetune_operator.job.observed import Observed
from finetune_operator.job.times import after

_SECONDS = 5.0
"""How often a job looks at its rollout."""
_ENDS: dict[str, Phase] = {"Rejected": "Rejected", "RolledBack": "RolledBack", "Superseded": "Superseded"}
_PHASES: dict[str, Phase] = {
    "Empty": "Shadowing",
    "Idle": "Queued",
    "Shadowing": "Shadowing",
    "Canary": "Canary",
    "AwaitingApproval": "AwaitingApproval",
    "Promoting": "Promoting",
    "Guarding": "Guarding",
    "Paused": "Paused",
    "RollingBack": "RollingBack",
}


def mirror(*, observed: Observed, status: FineTuneJobStatus, version: VersionReference) -> Draft:
    """Where the job's version is on its way into production."""
    endpoint = observed.endpoint
    name = observed.job.spec.endpoint_ref.name if observed.job.spec.endpoint_ref else ""
    if endpoint is None:
        message = f"ModelEndpoint {name} is gone; {version.name} is kept: create the endpoint, and it is tried there"
        summary = Summary(state="Stalled", reason="EndpointNotFound", message=message)
        return Draft(status=status, phase="Failed", summary=summary, at_once=True)
    outcome = next((each for each in reversed(endpoint.status.versions) if each.uid == version.uid), None)
    if outcome is not None and outcome.outcome in _ENDS:
        message = f"{version.name}: {outcome.reason} (by {outcome.by})"
        recorded = _recorded(status, endpoint=endpoint, promoted=outcome.outcome == "RolledBack" and _was(status))
        summary = Summary(state="Stalled", reason=outcome.outcome, message=message)
        return Draft(status=recorded, phase=_ENDS[outcome.outcome], summary=summary, at_once=True)
    under_way = endpoint.status.step is not None and _serves(endpoint, version)
    if outcome is not None and outcome.outcome == "Promoted" and not under_way:
        summary = Summary(state="Ready", reason="Succeeded", message=f"{version.name} serves {name}")
        recorded = _recorded(status, endpoint=endpoint, promoted=True)
        return Draft(status=recorded, phase="Succeeded", summary=summary, at_once=True)
    return _goes_on(observed, status=status, version=version, endpoint=endpoint, promoted=outcome is not None)


def _goes_on(
    observed: Observed,
    *,
    status: FineTuneJobStatus,
    version: VersionReference,
    endpoint: ModelEndpoint,
    promoted: bool,
) -> Draft:
    candidate = endpoint.status.candidate
    mine = promoted or (candidate is not None and candidate.uid == version.uid)
    phase = _PHASES[endpoint.status.phase or "Idle"] if mine else "Queued"
    message = endpoint.status.message or ""
    if endpoint.status.held is not None and endpoint.status.held.uid == version.uid:
        phase, message = "AwaitingApproval", f"{version.name} is held: {endpoint.status.held.reason}"
    elif not mine:
        message = f"{version.name} waits for its turn at {endpoint.metadata.name}: {message}"
    return Draft(
        status=_recorded(status, endpoint=endpoint, promoted=promoted),
        phase=phase,
        summary=Summary(state="Reconciling", reason=phase, message=message),
        look_again=(after(observed.now, _SECONDS),),
    )


def _recorded(status: FineTuneJobStatus, *, endpoint: ModelEndpoint, promoted: bool) -> FineTuneJobStatus:
    step = endpoint.status.step
    live = step is not None and step.stage in ("Canary", "Approval", "Promoting", "Guard")
    rollout = RolloutStatus(
        endpoint=endpoint.metadata.name,
        phase=endpoint.status.phase or "Idle",
        weight=step.percent if live and step is not None else None,
        promoted=promoted,
        message=endpoint.status.message,
    )
    return status.model_copy(update={"rollout": rollout})


def _was(status: FineTuneJobStatus) -> bool:
    return status.rollout is not None and status.rollout.promoted


def _serves(endpoint: ModelEndpoint, version: VersionReference) -> bool:
    return endpoint.status.stable is not None and endpoint.status.stable.uid == version.uid
