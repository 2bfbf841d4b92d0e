"""How long the run's pods have been running, and on how many GPUs.

Only running counts: not the queue, not the pull of an image, not a suspension. An attempt is running from the start of
its first container to the end of its last one.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus, StageStatus
from finetune_operator.job.attempt import last_end
from finetune_operator.job.observed import Observed
from finetune_operator.job.plan import ResolvedPlan, read_plan
from finetune_operator.job.stages import size_of


def seconds_of_attempt(*, stage: StageStatus, observed: Observed) -> int:
    """How long the newest attempt of a stage has been running, or had been when it ended."""
    if stage.start_time is None:
        return 0
    attempt = observed.attempt(stage.name, stage.attempt)
    end = last_end(attempt=attempt)
    if end is None:
        # Nobody knows when it ended: up to its last report if there was one, since it may have been gone for hours.
        running = any(pod.running for pod in attempt.pods)
        end = observed.now if running else _last_word(observed=observed, stage=stage)
    return max(0, int((end - stage.start_time).total_seconds()))


def seconds_before(stage: StageStatus) -> int:
    """How long the stage's attempts that are over had been running."""
    return stage.active_seconds or 0


def active_seconds(*, status: FineTuneJobStatus, observed: Observed) -> int:
    """Seconds in which pods of the run have been running, until now."""
    return sum(_seconds(stage=stage, observed=observed) for stage in status.stages)


def with_counters(*, status: FineTuneJobStatus, observed: Observed) -> FineTuneJobStatus:
    """The status with its counters brought up to date."""
    plan = read_plan(status.plan) if status.plan is not None else None
    if not isinstance(plan, ResolvedPlan):
        return status
    gpu_seconds = 0
    for stage in status.stages:
        size = size_of(stage=stage.name, plan=plan)
        gpu_seconds += _seconds(stage=stage, observed=observed) * size.pods * size.gpus
    current = next((stage for stage in status.stages if stage.state != "Complete"), None)
    return status.model_copy(
        update={
            "active_seconds": active_seconds(status=status, observed=observed),
            "gpu_seconds": gpu_seconds if plan.gpus_per_node else None,
            "attempt": current.attempt if current else status.attempt,
        }
    )


def _seconds(*, stage: StageStatus, observed: Observed) -> int:
    """All attempts of a stage together; those that are over are recorded, the newest one is measured while it runs."""
    live = seconds_of_attempt(stage=stage, observed=observed) if stage.state == "Running" else 0
    return seconds_before(stage) + live


def _last_word(*, observed: Observed, stage: StageStatus) -> datetime:
    reported = observed.job.status.trainer_status
    last = reported.last_updated_time if reported else None
    start = stage.start_time or observed.now
    return last if last is not None and last >= start else start
