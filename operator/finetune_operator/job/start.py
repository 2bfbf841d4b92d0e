"""Beginning an attempt: its children are made once nothing of an older attempt can still run."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.results import Failure
from finetune_operator.job.attempt import may_run
from finetune_operator.job.children import children_of
from finetune_operator.job.decision import Draft
from finetune_operator.job.evidence import parsed_message
from finetune_operator.job.pods import PodState
from finetune_operator.job.reports import with_checkpoint
from finetune_operator.job.restarts import delay_seconds
from finetune_operator.job.stages import PHASE_OF_STAGE, recorded_results
from finetune_operator.job.step import SUSPENDED, Step, with_stage
from finetune_operator.job.times import after


def start(step: Step) -> Draft:
    """Make the attempt's children, or say what they wait for."""
    status = _with_last_checkpoint(step)
    if step.observed.job.spec.suspend:
        return step.draft(status=status, phase="Suspended", reason="Suspended", message=SUSPENDED)
    ending = _pods_of_others(step)
    if ending:
        grace = step.observed.config.lost_pod_seconds
        return step.draft(
            status=status,
            phase=step.phase,
            reason="Restarting",
            message="waiting until the pods of the attempt before have ended",
            look_again=tuple(pod.gone_by(lost_pod_seconds=grace) for pod in ending),
        )
    due = _earliest(step)
    if due is not None and step.observed.now < due:
        return step.draft(
            status=status,
            phase=step.phase,
            reason="Restarting",
            message=f"attempt {step.stage.attempt} of {step.stage.name} follows after a pause",
            look_again=(due,),
        )
    return _create(step, status=status)


def _create(step: Step, *, status: FineTuneJobStatus) -> Draft:
    children = children_of(
        job=step.observed.job,
        plan=step.plan,
        stage=step.stage.name,
        attempt=step.stage.attempt,
        results=recorded_results(step.status),
        config=step.observed.config,
        door=step.observed.door,
        avoid=step.status.restarts.nodes if step.status.restarts else (),
    )
    begun = step.stage.model_copy(update={"state": "Queued", "child": children[-1]["metadata"]["name"]})
    phase = PHASE_OF_STAGE[step.stage.name]
    draft = step.draft(status=with_stage(status, begun), phase=phase, reason=phase, message=step.activity)
    return replace(draft, create=children, forget_progress=step.training)


def _pods_of_others(step: Step) -> list[PodState]:
    """Pods of other attempts that may still run: two gangs must never write to one folder."""
    own = (step.stage.name, step.stage.attempt)
    now, config = step.observed.now, step.observed.config
    return [
        pod
        for key, attempt in step.observed.attempts.items()
        for pod in (*attempt.pods, *attempt.strays)
        if key != own and may_run(pod=pod, now=now, config=config)
    ]


def _earliest(step: Step) -> datetime | None:
    """When the pause after a failure is over."""
    restarts = step.status.restarts
    if restarts is None or restarts.last is None or step.stage.attempt == 1:
        return None
    return after(restarts.last.time, delay_seconds(reason=restarts.last.reason, used=restarts))


def _with_last_checkpoint(step: Step) -> FineTuneJobStatus:
    """The status with the checkpoint that the attempt before left when it was told to stop."""
    status = step.status
    for pod in step.observed.attempt(step.stage.name, step.stage.attempt - 1).pods:
        said = parsed_message(pod.ended.message) if pod.ended else None
        if isinstance(said, Failure):
            status = with_checkpoint(status=status, step=said.checkpoint_step, plan=step.plan, now=step.observed.now)
    return status
