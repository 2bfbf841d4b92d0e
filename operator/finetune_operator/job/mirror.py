"""A job with an endpoint goes on as its version does: the endpoint decides, the job shows it.

The job ends when its version's guard is over, or when the version is given up. What becomes of it later shows on the
endpoint only.
"""

from __future__ import annotations

from finetune_api.base import VersionReference
from finetune_api.finetunejob import FineTuneJobStatus, Phase, RolloutStatus
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.shared_fields import NextStatus, Release
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import after
from finetune_operator.job.decision import Draft
from finetune_operator.job.observed import Observed

_SECONDS = 5.0
"""How often a job looks at its rollout."""
_ENDS: dict[str, Phase] = {"Rejected": "Rejected", "RolledBack": "RolledBack", "Superseded": "Superseded"}


def mirror(*, observed: Observed, status: FineTuneJobStatus, version: VersionReference, deleted: bool = False) -> Draft:
    """Where the job's version is on its way into production. `deleted`: somebody has withdrawn it."""
    endpoint = observed.endpoint
    name = observed.job.spec.endpoint_ref.name if observed.job.spec.endpoint_ref else ""
    if endpoint is None:
        message = f"ModelEndpoint {name} is gone; {version.name} is kept: create the endpoint, and it is tried there"
        reason = Reason.ENDPOINT_NOT_FOUND
        return Draft(status=status, phase="Failed", state="Stalled", reason=reason, message=message, at_once=True)
    outcome = next((each for each in reversed(endpoint.status.versions) if each.uid == version.uid), None)
    if outcome is not None and outcome.outcome in _ENDS:
        fate = "rolled back" if outcome.outcome == "RolledBack" else outcome.outcome.lower()
        message = f"{version.name} was {fate} at {name}: {outcome.reason} (by {outcome.by})"
        recorded = _recorded(status, endpoint=endpoint, promoted=outcome.outcome == "RolledBack" and _was(status))
        return Draft(status=recorded, phase=_ENDS[outcome.outcome], state="Stalled", message=message, at_once=True)
    under_way = endpoint.status.step is not None and _serves(endpoint, version)
    if outcome is not None and outcome.outcome == "Promoted" and not under_way:
        serves = f"{version.name} serves {name}"
        if not _serves(endpoint, version):
            after_it = endpoint.status.stable.name if endpoint.status.stable else "nothing"
            serves = f"{version.name} was promoted at {name}, where {after_it} serves now"
        serves += f"; not proven: {outcome.reason}" if outcome.proven is False else ""
        recorded = _recorded(status, endpoint=endpoint, promoted=True)
        return Draft(status=recorded, phase="Succeeded", state="Ready", message=serves, at_once=True)
    candidate = endpoint.status.candidate
    if deleted and outcome is None and (candidate is None or candidate.uid != version.uid):
        message = f"{version.name} was deleted before {name} tried it"
        return Draft(status=status, phase="Rejected", state="Stalled", message=message, at_once=True)
    return _goes_on(observed, status=status, version=version, endpoint=endpoint, promoted=outcome is not None)


def _goes_on(
    observed: Observed,
    *,
    status: FineTuneJobStatus,
    version: VersionReference,
    endpoint: ModelEndpoint,
    promoted: bool,
) -> Draft:
    name, pin, message = endpoint.metadata.name, endpoint.spec.version, endpoint.status.message or ""
    candidate = endpoint.status.candidate
    held = next((each for each in endpoint.status.all_held if each.uid == version.uid), None)
    found = endpoint.status.next or NextStatus()
    phase: Phase = "Queued"
    if held is not None:
        message = f"{version.name} is held: {held.reason}; {name} says how to decide"
        phase = "AwaitingApproval"
    elif promoted or (candidate is not None and candidate.uid == version.uid):
        phase = _phase(endpoint)
        if endpoint.status.stable is None:
            message = f"{version.name} is the first version of {name}, with nothing to compare it with: {message}"
    elif pin and pin != version.name:
        message = f"{version.name} is not tried while spec.version of {name} pins {pin}: {message}"
        unpin = Release(action="Unpin", effect="leaves the choice to the operator: the newest proven version")
        found = NextStatus(waits_for=[f"spec.version of {name} to name it, or nothing"], release=[unpin])
    else:
        unseen = _looks_for_one(endpoint)
        message = f"{version.name} waits for its turn at {name}" + ("" if unseen else f": {message}")
        found = NextStatus(waits_for=[f"its turn at {name}", *(() if unseen else found.waits_for)])
    return Draft(
        status=_recorded(status, endpoint=endpoint, promoted=promoted),
        phase=phase,
        message=message,
        next=found,
        look_again=(after(observed.now, _SECONDS),),
    )


def _looks_for_one(endpoint: ModelEndpoint) -> bool:
    """Whether the endpoint still says that it has no version to try: it has not looked since this one was proven."""
    return any(each.type == "Ready" and each.reason == Reason.NO_VERSION for each in endpoint.status.conditions)


def _phase(endpoint: ModelEndpoint) -> Phase:
    """Of a job whose version is under way there, or is watched after its promotion."""
    phase, asked = endpoint.status.phase, endpoint.status.next.release if endpoint.status.next else []
    if phase == "Paused" or any(each.action == "Resume" for each in asked):
        return "Paused"
    if endpoint.status.stable is None:
        return "Promoting"
    return "Queued" if phase is None or phase == "Empty" or phase == "Idle" else phase


def _recorded(status: FineTuneJobStatus, *, endpoint: ModelEndpoint, promoted: bool) -> FineTuneJobStatus:
    step = endpoint.status.step
    live = step is not None and step.stage in ("Canary", "Approval", "Promoting", "Guard")
    rollout = RolloutStatus(
        endpoint=endpoint.metadata.name,
        phase=endpoint.status.phase or "Empty",
        weight=step.percent if live and step is not None else None,
        promoted=promoted,
        message=endpoint.status.message,
    )
    return status.model_copy(update={"rollout": rollout})


def _was(status: FineTuneJobStatus) -> bool:
    return status.rollout is not None and status.rollout.promoted


def _serves(endpoint: ModelEndpoint, version: VersionReference) -> bool:
    return endpoint.status.stable is not None and endpoint.status.stable.uid == version.uid
