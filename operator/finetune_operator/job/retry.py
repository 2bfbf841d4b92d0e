"""A run that failed goes on where it failed, since a person asks for it. Pure.

The wish is an annotation that names the end which is meant by its time (`status.completionTime`). One write of the
status carries it out and takes that time away, so it is void from then on, after any later end as well: nothing else
has to be remembered, whoever is killed when.
"""

from __future__ import annotations

from finetune_api.finetunejob import RETRY, TERMINAL_PHASES, FineTuneJob, Restarts, StageStatus
from finetune_api.stage_reasons import needs_another_run
from finetune_operator.core.reasons import Reason
from finetune_operator.job.decision import Draft
from finetune_operator.job.stages import stage_of
from finetune_operator.job.step import with_stage

_ANOTHER = "apply it as a job of another name"


def end_of(job: FineTuneJob) -> str:
    """What the annotation has to say for this end of the run; "" before it has ended."""
    ended = job.status.phase in TERMINAL_PHASES
    return str(job.status.to_dict().get("completionTime", "")) if ended else ""


def is_asked(job: FineTuneJob) -> bool:
    """Whether a run that has ended is about to go on."""
    wanted = job.metadata.annotations.get(RETRY, "")
    return bool(wanted) and wanted == end_of(job) and not useless(job)


def void(job: FineTuneJob) -> str:
    """Why the wish that is there comes to nothing; "": there is none, or it was or will be carried out."""
    wanted, end = job.metadata.annotations.get(RETRY, ""), end_of(job)
    if not wanted or not end or (len(wanted) == len(end) and wanted < end):
        return ""
    return (
        useless(job)
        if wanted == end
        else f"{RETRY}: {wanted} is not the time of its end (status.completionTime: {end})"
    )


def useless(job: FineTuneJob) -> str:
    """Why a run that has ended would come to the same end again; "": what was to blame may be mended."""
    status, limit = job.status, job.spec.active_deadline_seconds
    ready = status.condition("Ready")
    reason = ready.reason if ready is not None else ""
    if status.phase != "Failed":
        return f"{status.phase} is what the run came to, and would come to again: change the spec and {_ANOTHER}"
    if limit is not None and (status.active_seconds or 0) >= limit:
        return f"spec.activeDeadlineSeconds ({limit}) is used up: raise it, then ask again"
    if needs_another_run(reason):
        return f"{reason} lies in the spec or in what the run has recorded, and neither changes: mend it and {_ANOTHER}"
    return ""


def retried(job: FineTuneJob) -> Draft:
    """Another attempt of the stage that failed, with fresh budgets. What is complete stays, and so do checkpoints."""
    status, lost = job.status, job.status.restarts.steps_lost if job.status.restarts else 0
    failed = next((stage for stage in status.stages if stage.state == "Failed"), None)
    status = status.model_copy(update={"restarts": Restarts(steps_lost=lost), "trainer_status": None})
    if failed is not None:
        following = StageStatus(
            name=failed.name,
            state="Pending",
            attempt=failed.attempt + 1,
            previous_child_uid=failed.child_uid,
            active_seconds=failed.active_seconds,
        )
        message = f"somebody asked for it: attempt {following.attempt} of {failed.name} follows"
        phase, status = stage_of(failed.name).phase, with_stage(status, following)
        return Draft(status=status, phase=phase, reason=Reason.RESTARTING, message=message, at_once=True)
    if status.plan is None:  # what it names is waited for as if it were new
        status = status.model_copy(update={"start_time": None})
    phase = "Evaluating" if status.stages else "Pending"
    message = "somebody asked for it: it begins again where it ended"
    return Draft(status=status, phase=phase, reason=Reason.RESTARTING, message=message, at_once=True)
