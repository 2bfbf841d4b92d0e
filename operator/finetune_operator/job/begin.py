"""Before the run: can it run at all, is everything there that it names, and what exactly will it do?"""

from __future__ import annotations

from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus, StageStatus
from finetune_operator.job.conditions import Summary
from finetune_operator.job.decision import Draft
from finetune_operator.job.observed import Observed, ObservedClaim
from finetune_operator.job.questions import baseline_name
from finetune_operator.job.resolve import Refusal, refusal, resolve, unsupported
from finetune_operator.job.times import after, whole_second
from finetune_operator.job.uris import claims_of
from finetune_operator.job.version import baseline_order

_REFERENCE_SECONDS = 10.0
"""Objects that are not ours are not watched; those that a job waits for are looked at this often."""


def begin(observed: Observed) -> Draft:
    """Record the plan, or say why not."""
    job = observed.job
    if job.spec.suspend:
        return Draft(
            status=job.status,
            phase="Suspended",
            summary=Summary(state="Reconciling", reason="Suspended", message="suspended before it began"),
        )
    problem = unsupported(job.spec)
    if problem is not None:
        return _held(observed, problem)
    status = job.status
    if status.start_time is None:
        status = status.model_copy(update={"start_time": whole_second(observed.now)})
    refused = (
        refusal(job=job, config=observed.config)
        or _claim_refusal(observed)
        or _endpoint_refusal(observed)
        or _baseline_refusal(observed)
    )
    if refused is not None:
        return refused_draft(status=status, refused=refused)
    missing = _missing(observed)
    if missing is not None:
        return _waiting(observed=observed, status=status, missing=missing)
    return _planned(observed=observed, status=status)


def refused_draft(*, status: FineTuneJobStatus, refused: Refusal) -> Draft:
    """The run ends before it began."""
    summary = Summary(state="Stalled", reason=refused.reason, message=refused.message)
    return Draft(status=status, phase="Failed", summary=summary)


def _planned(*, observed: Observed, status: FineTuneJobStatus) -> Draft:
    baseline = baseline_order(observed.baseline) if observed.baseline is not None else None
    plan = resolve(job=observed.job, config=observed.config, baseline=baseline)
    recorded = status.model_copy(
        update={"plan": plan.to_dict(), "stages": [StageStatus(name="Prepare", state="Pending")]}
    )
    summary = Summary(state="Reconciling", reason="Pending", message="planned; the first pod is next")
    return Draft(status=recorded, phase="Pending", summary=summary, at_once=True)


def _held(observed: Observed, problem: str) -> Draft:
    message = f"{problem} is not supported by this version of the operator; it waits for a newer one"
    return Draft(
        status=observed.job.status,
        phase="Pending",
        summary=Summary(state="Stalled", reason="NotSupported", message=message),
    )


# -- what it names ----------------------------------------------------------------------------------------------------


def _claim_refusal(observed: Observed) -> Refusal | None:
    """Several pods may run on several nodes: a claim that they share must allow that."""
    nodes = (observed.job.spec.compute.nodes if observed.job.spec.compute else None) or 1
    if nodes == 1:
        return None
    writable = {claim.name: claim.writable for claim in claims_of(observed.job.spec)}
    for claim in observed.claims:
        if claim.exists and not _shared(claim=claim, writable=writable.get(claim.name, True)):
            modes = " or ".join(_needed_modes(writable=writable.get(claim.name, True)))
            return Refusal(
                reason="ClaimNotShared",
                message=f"claim {claim.name} has access mode {', '.join(claim.access_modes)}, but compute.nodes is "
                f"{nodes}: pods on several nodes need {modes}; use such a claim, an object store, or compute.nodes 1",
            )
    return None


def _needed_modes(*, writable: bool) -> tuple[str, ...]:
    return ("ReadWriteMany",) if writable else ("ReadWriteMany", "ReadOnlyMany")


def _shared(*, claim: ObservedClaim, writable: bool) -> bool:
    return any(mode in claim.access_modes for mode in _needed_modes(writable=writable))


def _endpoint_refusal(observed: Observed) -> Refusal | None:
    endpoint, task = observed.endpoint, observed.job.spec.model.task
    if endpoint is None or endpoint.spec.task == task:
        return None
    return Refusal(
        reason="EndpointMismatch",
        message=f"spec.endpointRef: ModelEndpoint {endpoint.metadata.name} is for task {endpoint.spec.task}, this job "
        f"for {task}; name an endpoint of the same task",
    )


def _baseline_refusal(observed: Observed) -> Refusal | None:
    baseline, task = observed.baseline, observed.job.spec.model.task
    if baseline is None or baseline.spec.task == task:
        return None
    return Refusal(
        reason="BaselineMismatch",
        message=f"spec.evaluation.baseline: ModelVersion {baseline.metadata.name} is for task {baseline.spec.task}, "
        f"this job for {task}; name a version of the same task",
    )


def _missing(observed: Observed) -> Refusal | None:
    """Something that the job names and that is not there (yet)."""
    endpoint = observed.job.spec.endpoint_ref
    if endpoint is not None and observed.endpoint is None:
        return Refusal(
            reason="EndpointNotFound", message=f"spec.endpointRef: there is no ModelEndpoint {endpoint.name} here"
        )
    name = baseline_name(observed.job, endpoint=observed.endpoint)
    if name is not None and observed.baseline is None:
        return Refusal(
            reason="BaselineNotFound", message=f"spec.evaluation.baseline: there is no ModelVersion {name} here"
        )
    missing = next((claim.name for claim in observed.claims if not claim.exists), None)
    if missing is not None:
        return Refusal(reason="ClaimNotFound", message=f"there is no PersistentVolumeClaim {missing} here")
    return None


def _waiting(*, observed: Observed, status: FineTuneJobStatus, missing: Refusal) -> Draft:
    """GitOps tools apply objects in any order, so what is missing may still come, for a while."""
    limit = observed.config.reference_deadline_seconds
    deadline: datetime = after(status.start_time or observed.now, limit)
    if observed.now >= deadline:
        message = f"{missing.message}; it did not come within {limit} s: create it, then create the job again"
        return refused_draft(status=status, refused=Refusal(reason=missing.reason, message=message))
    message = f"{missing.message}; waiting for it for at most {limit} s"
    return Draft(
        status=status,
        phase="Pending",
        summary=Summary(state="Reconciling", reason=missing.reason, message=message),
        look_again=(min(deadline, after(observed.now, _REFERENCE_SECONDS)),),
    )
