"""Progress reports of the training pods: what the status shows of them, and whether their silence means a hang."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.finetunejob import CheckpointStatus, FineTuneJobStatus, ProgressMetric, TrainerStatus
from finetune_api.progress import CHECKPOINT_STEP, STEP
from finetune_api.results import TrainResult
from finetune_operator.attempts.pods import PodState
from finetune_operator.core.times import after, whole_second
from finetune_operator.job.observed import Observed
from finetune_operator.job.plan import ResolvedPlan


def with_progress(*, status: FineTuneJobStatus, observed: Observed, plan: ResolvedPlan) -> FineTuneJobStatus:
    """The status with the newest report. Times are the operator's own: nodes' clocks differ."""
    progress = observed.progress
    if progress is None:
        return status
    reported = progress.status.model_copy(update={"last_updated_time": whole_second(progress.received)})
    status = status.model_copy(update={"trainer_status": reported})
    step = whole_number(reported.metric(CHECKPOINT_STEP))
    return with_checkpoint(status=status, step=step, plan=plan, now=progress.received)


def with_all_steps(*, status: FineTuneJobStatus, result: TrainResult) -> FineTuneJobStatus:
    """The status of training that is complete, whose last report may have been lost."""
    shown = status.trainer_status or TrainerStatus()
    others = [each for each in shown.metrics or () if each.name != STEP]
    end = {
        "progress_percentage": 100,
        "estimated_remaining_seconds": 0,
        "metrics": [ProgressMetric(name=STEP, value=str(result.steps)), *others],
    }
    return status.model_copy(update={"trainer_status": shown.model_copy(update=end)})


def with_checkpoint(
    *, status: FineTuneJobStatus, step: int | None, plan: ResolvedPlan, now: datetime
) -> FineTuneJobStatus:
    """The status with the newest checkpoint, where this one is newer."""
    before = status.checkpoint
    if step is None or (before is not None and before.step >= step):
        return status
    checkpoint = CheckpointStatus(uri=f"{plan.run}/checkpoints/step-{step}", step=step, time=whole_second(now))
    return status.model_copy(update={"checkpoint": checkpoint})


def last_step(status: FineTuneJobStatus) -> int | None:
    """The last optimiser step that was reported by the attempt that is shown."""
    return whole_number(status.trainer_status.metric(STEP)) if status.trainer_status else None


def last_report(observed: Observed) -> datetime | None:
    """When the newest report of this attempt came in; None: none ever did."""
    shown: TrainerStatus | None = observed.job.status.trainer_status
    received = [observed.progress.received] if observed.progress is not None else []
    if shown is not None and shown.last_updated_time is not None:
        received.append(shown.last_updated_time)
    return max(received, default=None)


def last_sign(
    *, observed: Observed, pods: Sequence[PodState], running_since: datetime, hang_seconds: int
) -> datetime | None:
    """Since when training has been silent. Silence counts only while we listen and all pods run.

    None: nothing was ever heard of this attempt, neither by a report nor by a probe. That says more about the way to us
    than about training.
    """
    if any(pod.alive for pod in pods):
        return observed.now
    # A probe fails once nothing has happened for hang_seconds.
    signs = [after(pod.alive_changed, -hang_seconds) for pod in pods if pod.alive is False and pod.alive_changed]
    report = last_report(observed)
    # One of an attempt before, which was suspended, says nothing about this one.
    signs += [report] if report is not None and report >= whole_second(running_since) else []
    return max(*signs, running_since, observed.listening_since) if signs else None


def unheard(*, observed: Observed, running_since: datetime, hang_seconds: int) -> str:
    """What keeps reports away from us, as far as that can be said; "": they come."""
    since = max(last_report(observed) or running_since, running_since, observed.listening_since)
    if observed.door is None or observed.now < after(since, hang_seconds):
        return ""
    return (
        f"no report of it comes to the operator ({observed.door.url}), so progress is not shown and a hang may not be "
        "noticed: a NetworkPolicy of this namespace may forbid its pods to go there; see docs/install.md, Networks"
    )


def whole_number(text: str | None) -> int | None:
    """A metric's text as a number, None where it is none."""
    try:
        return None if text is None else int(float(text))
    except (ValueError, OverflowError):
        return None
