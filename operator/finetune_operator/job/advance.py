"""While the run goes: the next step of its current stage.

What an attempt has brought is recorded first; what follows from it (the next stage, another attempt, the end of old
pods) is done at the next look, which comes at once.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus, StageStatus
from finetune_operator.job.accounting import active_seconds
from finetune_operator.job.attempt import first_start, judge
from finetune_operator.job.cleanup import removals
from finetune_operator.job.decision import Draft
from finetune_operator.job.node_affinity import forbidden
from finetune_operator.job.observed import Observed
from finetune_operator.job.outcome import fail, forgive, record, restart_or_fail, suspend
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.reports import last_sign, unheard, with_progress
from finetune_operator.job.restarts import Cause
from finetune_operator.job.stages import PHASE_OF_STAGE, size_of
from finetune_operator.job.start import start
from finetune_operator.job.step import Step, with_stage
from finetune_operator.job.times import after
from finetune_operator.job.verdicts import Absent, Broken, Running, Stopping, Succeeded, Verdict, Waiting

_AVOID_SECONDS = 600.0
"""How long an attempt waits for another node than those on which the last ones ended."""
_LOOK_SECONDS = 30.0
"""How often to look at what no watched object tells: why a Job gets no pods, why Kueue holds it."""

_WORDS = {
    "PodsNotCreated": "a quota or a policy may refuse them; kubectl describe job says more",
    "Queued": "waiting for Kueue",
}
"""Where those who hold an attempt have not said why."""


def advance(*, observed: Observed, plan: ResolvedPlan, stage: StageStatus) -> Draft:
    """The next step of a stage that is not complete; children of attempts that are over go."""
    step = Step(observed=observed, plan=plan, stage=stage)
    return replace(_next(step), delete=removals(observed))


def _next(step: Step) -> Draft:
    observed, stage = step.observed, step.stage
    size = size_of(stage=stage.name, plan=step.plan).pods
    verdict = judge(attempt=step.attempt, stage=stage.name, size=size, now=observed.now, config=observed.config)
    if isinstance(verdict, Succeeded):
        return record(step, verdict)
    if isinstance(verdict, Broken):
        return restart_or_fail(step, verdict)
    if isinstance(verdict, Absent):
        return start(step) if stage.state == "Pending" else restart_or_fail(step, _job_deleted(stage))
    if observed.job.spec.suspend and not isinstance(verdict, Stopping):
        return suspend(step)
    if (due := _forgiven_at(step, verdict)) is not None and observed.now >= due:
        return forgive(step)
    return _go_on(step, verdict)


def _forgiven_at(step: Step, verdict: Verdict) -> datetime | None:
    """When nodes that are strictly avoided are tried again, as no other one has room; None: none are, or one has."""
    used = step.status.restarts
    if not (isinstance(verdict, Waiting) and verdict.reason == "Unschedulable" and used and forbidden(used.nodes)):
        return None
    return max(after(pod.created, _AVOID_SECONDS) for pod in step.attempt.pods)


def _job_deleted(stage: StageStatus) -> Broken:
    return Broken(cause=Cause.JOB_DELETED, reason=Cause.JOB_DELETED, message=f"Job {stage.child} was deleted")


def _go_on(step: Step, verdict: Waiting | Running | Stopping) -> Draft:
    """Show how the attempt is doing, and end it where it is over time or hangs."""
    status, now = _with_state(step), step.observed.now
    overdue = _deadline(step, status=status)
    if overdue is not None and now >= overdue:
        limit = step.observed.job.spec.active_deadline_seconds
        message = f"its pods have been running for {limit} s, which is all that spec.activeDeadlineSeconds allows"
        return fail(step, reason="DeadlineExceeded", message=message)
    if isinstance(verdict, Stopping):
        return step.draft(
            status=status,
            phase=step.phase,
            reason="Stopping",
            message=verdict.message,
            look_again=(overdue, verdict.look_again),
        )
    if isinstance(verdict, Waiting):
        return _wait(step, verdict, status=status, overdue=overdue)
    return _run(step, verdict, status=status, overdue=overdue)


def _wait(step: Step, waiting: Waiting, *, status: FineTuneJobStatus, overdue: datetime | None) -> Draft:
    words = step.observed.wait_words or _WORDS.get(waiting.reason, "")
    message = ": ".join(each for each in (waiting.message, words) if each)
    again = after(step.observed.now, _LOOK_SECONDS) if waiting.about else None
    if not waiting.queued:
        phase = PHASE_OF_STAGE[step.stage.name]
        return step.draft(
            status=status,
            phase=phase,
            reason=waiting.reason if message else phase,
            message=message or step.activity,
            look_again=(overdue, again, waiting.look_again),
        )
    forgiven = _forgiven_at(step, waiting)
    return step.draft(
        status=status, phase="Queued", reason=waiting.reason, message=message, look_again=(overdue, again, forgiven)
    )


def _run(step: Step, running: Running, *, status: FineTuneJobStatus, overdue: datetime | None) -> Draft:
    phase, hung, hang_seconds = PHASE_OF_STAGE[step.stage.name], None, step.plan.hang_seconds
    reason, troubles = str(phase), [running.trouble]
    if step.training:
        silent_since = last_sign(
            observed=step.observed, pods=step.attempt.pods, running_since=running.since, hang_seconds=hang_seconds
        )
        hung = after(silent_since or step.observed.now, hang_seconds)
        if step.observed.now >= hung:
            message = f"training has not reported for {step.plan.hang_seconds} s (failurePolicy.hangSeconds)"
            return restart_or_fail(step, Broken(cause=Cause.HUNG, reason=Cause.HUNG, message=message))
        status = with_progress(status=status, observed=step.observed, plan=step.plan)
        if silence := unheard(observed=step.observed, running_since=running.since, hang_seconds=hang_seconds):
            reason = "NotReporting"
            troubles.append(silence)
    message = "; ".join([step.activity, *(each for each in troubles if each)])
    return step.draft(status=status, phase=phase, reason=reason, message=message, look_again=(overdue, hung))


def _with_state(step: Step) -> FineTuneJobStatus:
    """The status with the stage's state and start, as far as its pods have got."""
    stage, started = step.stage, first_start(step.attempt.pods)
    update: dict[str, object] = {"state": "Queued" if started is None else "Running"}
    if stage.start_time is None:
        update["start_time"] = started
    elif _has_new_pods(step):
        update |= {"start_time": started, "active_seconds": step.seconds() or None}
    if step.attempt.job is not None:
        update["child"] = step.attempt.job.ref.name
    if started is not None:  # before that, its pods have nothing to say
        update["child_uid"] = step.child_uid
    return with_stage(step.status, stage.model_copy(update=update))


def _has_new_pods(step: Step) -> bool:
    """Kueue took the attempt's pods away, and gives or gave it others: the time in between does not count."""
    start, pods = step.stage.start_time, step.attempt.pods
    return start is not None and first_start(pods) != start and all(pod.created > start for pod in pods)


def _deadline(step: Step, *, status: FineTuneJobStatus) -> datetime | None:
    """When spec.activeDeadlineSeconds will be used up, if the pods go on running; None where they do not run."""
    limit = step.observed.job.spec.active_deadline_seconds
    if limit is None or not any(pod.running for pod in step.attempt.pods):
        return None
    return after(step.observed.now, limit - active_seconds(status=status, observed=step.observed))
