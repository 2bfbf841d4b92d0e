"""Before the run: can it run at all, is everything there that it names, and what exactly will it do?"""

from __future__ import annotations

from datetime import datetime

from finetune_api.finetunejob import FineTuneJob, FineTuneJobSpec, FineTuneJobStatus, StageStatus
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_api.tasks import METHODS
from finetune_operator.attempts.evaluation import baseline_order, parent_order
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import after, whole_second
from finetune_operator.job.decision import Draft
from finetune_operator.job.deepspeed_config import DeepSpeedConfigError, with_config
from finetune_operator.job.observed import Observed, ObservedClaim
from finetune_operator.job.resolve import (
    Refusal,
    claims_of,
    parent_name,
    parent_refusal,
    refusal,
    resolve,
    unsupported,
    uris_of,
)
from finetune_operator.job.stages import ORDERED

_REFERENCE_SECONDS = 10.0
"""Objects that are not ours are not watched; those that a job waits for are looked at this often."""


def begin(observed: Observed) -> Draft:
    """Record the plan, or say why not."""
    job = observed.job
    if job.spec.suspend:
        return Draft(status=job.status, phase="Suspended", message="suspended before it began")
    problem = unsupported(job.spec)
    if problem is not None:
        message = f"{problem} is not supported by this version of the operator; it waits for a newer one"
        reason = Reason.NOT_SUPPORTED
        return Draft(status=job.status, phase="Pending", state="Stalled", reason=reason, message=message)
    status = job.status
    if status.start_time is None:
        status = status.model_copy(update={"start_time": whole_second(observed.now)})
    refused = refusal(job=job, config=observed.config) or _claim_refusal(observed) or _task_refusal(observed)
    if refused is not None:
        return _refused(status=status, refused=refused)
    missing = _missing(observed)
    if missing is not None:
        return _waiting(observed=observed, status=status, missing=missing)
    baseline = baseline_order(observed.baseline) if observed.baseline is not None else None
    parent = parent_order(observed.parent) if observed.parent is not None else None
    outside = parent_refusal(parent, config=observed.config) if parent is not None else None
    if outside is not None:
        return _refused(status=status, refused=outside)
    plan = resolve(job=observed.job, config=observed.config, baseline=baseline, parent=parent)
    if observed.endpoint is not None and observed.endpoint.spec.serving.runtime == "VLLM":
        plan = plan.model_copy(update={"served_by_vllm": True})
    try:
        plan = with_config(plan, job=job, data=observed.config_data or {})
    except DeepSpeedConfigError as error:
        return _refused(status=status, refused=Refusal(reason=Reason.CONFIG_INVALID, message=str(error)))
    recorded = status.model_copy(
        update={"plan": plan.to_dict(), "stages": [StageStatus(name=ORDERED[0].name, state="Pending")]}
    )
    return Draft(status=recorded, phase="Pending", message="planned; the first pod is next", at_once=True)


def _refused(*, status: FineTuneJobStatus, refused: Refusal) -> Draft:
    """The run ends before it began."""
    return Draft(status=status, phase="Failed", state="Stalled", reason=refused.reason, message=refused.message)


# -- what it names ----------------------------------------------------------------------------------------------------


def _claim_refusal(observed: Observed) -> Refusal | None:
    """Several pods may run on several nodes: a claim that they share must allow that."""
    spec = observed.job.spec
    nodes = (spec.compute.nodes if spec.compute else None) or 1
    writable = {claim.name: claim.writable for claim in claims_of(spec)}
    for claim in observed.claims if nodes > 1 else ():
        modes = ("ReadWriteMany",) if writable.get(claim.name, True) else ("ReadWriteMany", "ReadOnlyMany")
        if claim.exists and not set(modes) & set(claim.access_modes):
            message = (
                f"{_named(claim, spec)} has access mode {', '.join(claim.access_modes)}, but compute.nodes is {nodes},"
                f" whose pods need {' or '.join(modes)}; use such a claim, an object store, or compute.nodes: 1"
            )
            return Refusal(reason=Reason.CLAIM_NOT_SHARED, message=message)
    return None


def _named(claim: ObservedClaim, spec: FineTuneJobSpec) -> str:
    """A claim, with the field whose URI names it in front."""
    prefix = f"pvc://{claim.name}/"
    field = next((field for field, uri in uris_of(spec).items() if f"{uri}/".startswith(prefix)), None)
    return f"{field}: PersistentVolumeClaim {claim.name}" if field else f"PersistentVolumeClaim {claim.name}"


def _task_refusal(observed: Observed) -> Refusal | None:
    """What the job names must be for its task, and its endpoint able to serve what it makes."""
    task = observed.job.spec.model.task
    named: tuple[tuple[Reason, str, ModelEndpoint | ModelVersion | None], ...] = (
        (Reason.ENDPOINT_MISMATCH, "spec.endpointRef", observed.endpoint),
        (Reason.BASELINE_MISMATCH, "spec.evaluation.baseline", observed.baseline),
        (Reason.PARENT_MISMATCH, "spec.model.uri", observed.parent),
    )
    for reason, field, found in named:
        if found is not None and found.spec.task != task:
            what = f"{field}: {found.kind} {found.metadata.name} is for task {found.spec.task}, this job for {task}"
            return Refusal(reason=reason, message=f"{what}; name one of the same task")
    parent = observed.parent
    if parent is not None and parent.spec.artifact.format != "Adapter" and observed.job.spec.method.parent == "Keep":
        what = f"spec.method.parent: Keep, but ModelVersion {parent.metadata.name} is a whole model"
        message = f"{what} (spec.artifact.format: {parent.spec.artifact.format}), no adapter; use Merge"
        return Refusal(reason=Reason.PARENT_MISMATCH, message=message)
    method, endpoint = observed.job.spec.method.type, observed.endpoint
    if endpoint is not None and endpoint.spec.serving.runtime == "VLLM" and not METHODS[method].vllm:
        what = f"spec.method.type: vLLM, by which {endpoint.kind} {endpoint.metadata.name} serves, knows no {method}"
        return Refusal(
            reason=Reason.ENDPOINT_MISMATCH, message=f"{what}; use LoRA, or serving.runtime: Transformers there"
        )
    return None


def baseline_name(job: FineTuneJob, *, endpoint: ModelEndpoint | None) -> str | None:
    """The ModelVersion that the job wants to beat; None: the base model."""
    wanted = (job.spec.evaluation.baseline if job.spec.evaluation else None) or "Production"
    if wanted == "Production":
        return endpoint.status.stable.name if endpoint is not None and endpoint.status.stable is not None else None
    return None if wanted == "Base" else wanted


def _missing(observed: Observed) -> Refusal | None:
    """Something that the job names and that is not there (yet)."""
    endpoint = observed.job.spec.endpoint_ref
    if endpoint is not None and observed.endpoint is None:
        message = f"spec.endpointRef: there is no ModelEndpoint {endpoint.name} here"
        return Refusal(reason=Reason.ENDPOINT_NOT_FOUND, message=message)
    config = observed.job.spec.compute.config_ref if observed.job.spec.compute else None
    if config is not None and config.key not in (observed.config_data or {}):
        named, there_is = f"ConfigMap {config.name}", observed.config_data is not None
        what = f"{named} has no key {config.key}" if there_is else f"there is no {named} here"
        return Refusal(reason=Reason.CONFIG_NOT_FOUND, message=f"spec.compute.configRef: {what}")
    name = baseline_name(observed.job, endpoint=observed.endpoint)
    if name is not None and observed.baseline is None:
        message = f"spec.evaluation.baseline: there is no ModelVersion {name} here"
        return Refusal(reason=Reason.BASELINE_NOT_FOUND, message=message)
    parent = parent_name(observed.job.spec)
    if parent is not None and observed.parent is None:
        message = f"spec.model.uri: there is no ModelVersion {parent} here"
        return Refusal(reason=Reason.PARENT_NOT_FOUND, message=message)
    missing = next((claim for claim in observed.claims if not claim.exists), None)
    if missing is not None:
        message = f"{_named(missing, observed.job.spec)} does not exist here"
        return Refusal(reason=Reason.CLAIM_NOT_FOUND, message=message)
    return None


def _waiting(*, observed: Observed, status: FineTuneJobStatus, missing: Refusal) -> Draft:
    """GitOps tools apply objects in any order, so what is missing may still come, for a while."""
    limit = observed.config.reference_deadline_seconds
    deadline: datetime = after(status.start_time or observed.now, limit)
    if observed.now >= deadline:
        message = f"{missing.message}; it did not come within {limit} s: create it, then create the job again"
        return _refused(status=status, refused=Refusal(reason=missing.reason, message=message))
    message = f"{missing.message}; waiting for it for at most {limit} s"
    return Draft(
        status=status,
        phase="Pending",
        reason=missing.reason,
        message=message,
        look_again=(min(deadline, after(observed.now, _REFERENCE_SECONDS)),),
        until=deadline,
    )
