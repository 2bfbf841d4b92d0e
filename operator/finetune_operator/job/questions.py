"""What else must be looked at for a decision, given what was seen so far. It keeps reads to what a decision needs."""

from __future__ import annotations

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.job.attempt import judge
from finetune_operator.job.names import version_name
from finetune_operator.job.observed import ChildJob, Observed
from finetune_operator.job.plan import ResolvedPlan, read_plan
from finetune_operator.job.stages import size_of
from finetune_operator.job.uris import claims_of
from finetune_operator.job.verdicts import Waiting


def is_new(job: FineTuneJob) -> bool:
    """It has no plan yet, so it has no children, and what it names must be looked at."""
    return job.status.plan is None and job.status.phase not in TERMINAL_PHASES


def claim_names(job: FineTuneJob) -> list[str]:
    """PersistentVolumeClaims that the job names."""
    return [claim.name for claim in claims_of(job.spec)]


def endpoint_name(job: FineTuneJob) -> str | None:
    """The endpoint that must be looked at now: for what is in production, or for how the rollout goes."""
    if job.spec.endpoint_ref is None or job.status.phase in TERMINAL_PHASES:
        return None
    return job.spec.endpoint_ref.name if job.status.plan is None or job.status.evaluation is not None else None


def baseline_name(job: FineTuneJob, *, endpoint: ModelEndpoint | None) -> str | None:
    """The ModelVersion that the job wants to beat; None: the base model."""
    wanted = (job.spec.evaluation.baseline if job.spec.evaluation else None) or "Production"
    if wanted == "Production":
        return endpoint.status.stable.name if endpoint is not None and endpoint.status.stable is not None else None
    return None if wanted == "Base" else wanted


def version_names(job: FineTuneJob) -> list[str]:
    """The names that the job's ModelVersion could have, once all its stages are complete."""
    status = job.status
    if status.phase in TERMINAL_PHASES or status.evaluation is None:
        return []
    return [version_name(job=job, taken=False), version_name(job=job, taken=True)]


def waiting_job(observed: Observed) -> tuple[ChildJob, Waiting] | None:
    """The Job that waits for something of which others know more."""
    status = observed.job.status
    stage = next((stage for stage in status.stages if stage.state != "Complete"), None)
    plan = read_plan(status.plan) if status.plan is not None else None
    if stage is None or not isinstance(plan, ResolvedPlan) or status.phase in TERMINAL_PHASES:
        return None
    attempt = observed.attempt(stage.name, stage.attempt)
    size = size_of(stage=stage.name, plan=plan).pods
    verdict = judge(attempt=attempt, stage=stage.name, size=size, now=observed.now, config=observed.config)
    if isinstance(verdict, Waiting) and verdict.about and attempt.job is not None:
        return attempt.job, verdict
    return None
