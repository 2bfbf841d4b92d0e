"""While the run goes: the next step of its current stage.

What an attempt has brought is recorded first; what follows from it (the next stage, another attempt, the end of old
pods) is done at the next look, which comes at once.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_api.finetunejob import EvaluationStatus, FineTuneJobStatus, LastRestart, Restarts, StageStatus
from finetune_api.results import EvaluateResult, Failure, TrainResult
from finetune_operator.attempts.evidence import end_without_job, parsed_message
from finetune_operator.attempts.judge import first_start, last_end, may_run
from finetune_operator.attempts.manifests import forbidden
from finetune_operator.attempts.pods import PodState
from finetune_operator.attempts.restarts import Budget, Cause, charged, delay_seconds, in_series, steps_lost, used_of
from finetune_operator.attempts.verdicts import Absent, Broken, Running, Stopping, Succeeded, Verdict, Waiting
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import after
from finetune_operator.gates.verdict import overall_verdict
from finetune_operator.job.children import children_of
from finetune_operator.job.cleanup import removals
from finetune_operator.job.decision import Draft, Restarted
from finetune_operator.job.observed import Observed
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.reports import last_sign, last_step, unheard, with_all_steps, with_checkpoint, with_progress
from finetune_operator.job.stages import recorded_results, stage_after
from finetune_operator.job.step import Step, active_seconds, judged, seconds_of_attempt, with_stage

SUSPENDED = "suspended; with spec.suspend false it goes on from the newest checkpoint"
_AVOID_SECONDS = 600.0
"""How long an attempt waits for another node than those on which the last ones ended."""
_LOOK_SECONDS = 30.0
"""How often to look at what no watched object tells: why a Job gets no pods, why Kueue holds it."""
_LONGEST_MESSAGE = 1024
_WORDS: dict[str, str] = {
    Reason.PODS_NOT_CREATED: "a quota or a policy may refuse them; kubectl describe job says more",
    Reason.QUEUED: "waiting for Kueue",
}
"""Where those who hold an attempt have not said why."""


def advance(*, observed: Observed, plan: ResolvedPlan, stage: StageStatus) -> Draft:
    """The next step of a stage that is not complete; children of attempts that are over go."""
    step = Step(observed=observed, plan=plan, stage=stage)
    return replace(_next(step, judged(observed, plan=plan, stage=stage)), delete=removals(observed))


def _next(step: Step, verdict: Verdict) -> Draft:
    if isinstance(verdict, Succeeded):
        return _record(step, verdict)
    if isinstance(verdict, Broken):
        return _restart_or_fail(step, verdict)
    if isinstance(verdict, Absent) and step.stage.state == "Pending":
        return _start(step)
    if isinstance(verdict, Absent):
        return _restart_or_fail(step, end_without_job(name=str(step.stage.child), pods=step.attempt.pods))
    if step.observed.job.spec.suspend and not isinstance(verdict, Stopping):
        return _suspend(step)
    if (due := _forgiven_at(step, verdict)) is not None and step.observed.now >= due:
        return _forgive(step)
    return _go_on(step, verdict)


# -- beginning an attempt: once nothing of an older one can still run -------------------------------------------------


def _start(step: Step) -> Draft:
    """Make the attempt's children, or say what they wait for."""
    status, now, number = _with_last_checkpoint(step), step.observed.now, step.stage.attempt
    if step.observed.job.spec.suspend:
        return Draft(status=status, phase="Suspended", message=SUSPENDED)
    if ending := _pods_of_others(step):
        grace = step.observed.config.lost_pod_seconds
        return Draft(
            status=status,
            phase=step.phase,
            reason=Reason.RESTARTING,
            message="waiting until the pods of the attempt before have ended",
            look_again=tuple(pod.gone_by(lost_pod_seconds=grace) for pod in ending),
        )
    if (due := _earliest(step)) is not None and now < due:
        message = f"attempt {number} of {step.stage.name} follows after a pause{_because(step.status)}"
        reason = Reason.RESTARTING
        return Draft(status=status, phase=step.phase, reason=reason, message=message, look_again=(due,), until=due)
    children = children_of(
        job=step.observed.job,
        plan=step.plan,
        stage=step.stage.name,
        attempt=number,
        results=recorded_results(step.status),
        config=step.observed.config,
        door=step.observed.door,
        avoid=step.status.restarts.nodes if step.status.restarts else (),
    )
    begun = step.stage.model_copy(update={"state": "Queued", "child": children[-1]["metadata"]["name"]})
    return Draft(
        status=with_stage(status, begun),
        phase=step.record.phase,
        message=step.activity,
        create=children,
        forget_progress=step.training,
    )


def _because(status: FineTuneJobStatus) -> str:
    """Why the attempt before ended, to be put behind what follows from it."""
    last = status.restarts.last if status.restarts else None
    return f"; the last one: {last.message}" if last and last.message else ""


def _pods_of_others(step: Step) -> list[PodState]:
    """Pods of other attempts that may still run: two gangs must never write to one folder."""
    own, now, config = (step.stage.name, step.stage.attempt), step.observed.now, step.observed.config
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


# -- on the way -------------------------------------------------------------------------------------------------------


def _forgiven_at(step: Step, verdict: Verdict) -> datetime | None:
    """When nodes that are strictly avoided are tried again, as no other one has room; None: none are, or one has."""
    used = step.status.restarts
    if not (isinstance(verdict, Waiting) and verdict.reason == Reason.UNSCHEDULABLE and used and forbidden(used.nodes)):
        return None
    return max(after(pod.created, _AVOID_SECONDS) for pod in step.attempt.pods)


def _go_on(step: Step, verdict: Waiting | Running | Stopping) -> Draft:
    """Show how the attempt is doing, and end it where it is over time or hangs."""
    status, now = _with_state(step), step.observed.now
    overdue = _deadline(step, status=status)
    if overdue is not None and now >= overdue:
        limit = step.observed.job.spec.active_deadline_seconds
        message = f"its pods have been running for {limit} s, which is all that spec.activeDeadlineSeconds allows"
        return _fail(step, reason=Reason.DEADLINE_EXCEEDED, message=message)
    if isinstance(verdict, Stopping):
        again, message = (overdue, verdict.look_again), verdict.message
        return Draft(status=status, phase=step.phase, reason=Reason.STOPPING, message=message, look_again=again)
    if isinstance(verdict, Waiting):
        return _wait(step, verdict, status=status, overdue=overdue)
    return _run(step, verdict, status=status, overdue=overdue)


def _wait(step: Step, waiting: Waiting, *, status: FineTuneJobStatus, overdue: datetime | None) -> Draft:
    words = step.observed.wait_words or _WORDS.get(waiting.reason, "")
    message = ": ".join(each for each in (waiting.message, words) if each)
    until = _forgiven_at(step, waiting)
    if waiting.reason in (Reason.IMAGE_PULL_FAILING, Reason.CONTAINER_CONFIG_INVALID):
        until = waiting.look_again
    again = after(step.observed.now, _LOOK_SECONDS) if waiting.about else None
    return Draft(
        status=status,
        phase="Queued" if waiting.queued else step.record.phase,
        reason=waiting.reason if message else "",
        message=message or step.activity,
        look_again=(overdue, again, waiting.look_again, until),
        until=until,
    )


def _run(step: Step, running: Running, *, status: FineTuneJobStatus, overdue: datetime | None) -> Draft:
    hung, hang_seconds = None, step.plan.hang_seconds
    reason, troubles = "", [step.activity, running.trouble]
    if step.training:
        silent_since = last_sign(
            observed=step.observed, pods=step.attempt.pods, running_since=running.since, hang_seconds=hang_seconds
        )
        hung = after(silent_since or step.observed.now, hang_seconds)
        if step.observed.now >= hung:
            message = f"training has not reported for {hang_seconds} s (failurePolicy.hangSeconds)"
            return _restart_or_fail(step, Broken(cause=Cause.HUNG, message=message))
        status = with_progress(status=status, observed=step.observed, plan=step.plan)
        if silence := unheard(observed=step.observed, running_since=running.since, hang_seconds=hang_seconds):
            reason = Reason.NOT_REPORTING
            troubles.append(silence)
    message = "; ".join(each for each in troubles if each)
    return Draft(status=status, phase=step.record.phase, reason=reason, message=message, look_again=(overdue, hung))


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


# -- what an attempt has come to --------------------------------------------------------------------------------------


def _record(step: Step, succeeded: Succeeded) -> Draft:
    """Record the result; the next stage begins at the next look."""
    result, stage = succeeded.result, step.timed_stage()
    complete = stage.model_copy(
        update={
            "state": "Complete",
            "child": step.attempt.job.ref.name if step.attempt.job else stage.child,
            "child_uid": step.child_uid,
            "completion_time": last_end(attempt=step.attempt) or step.now,
            "active_seconds": step.seconds(),
            "result": result.to_dict(),
        }
    )
    status = with_stage(step.status, complete)
    if step.training:
        status = with_progress(status=status, observed=step.observed, plan=step.plan)
    if isinstance(result, TrainResult):
        status = with_all_steps(status=status, result=result)
    if isinstance(result, EvaluateResult):
        verdict = overall_verdict(rows=result.results, reported=result.verdict)
        evaluation = EvaluationStatus(verdict=verdict, results=result.results, report=result.report)
        status = status.model_copy(update={"evaluation": evaluation})
    following = stage_after(stage.name)
    if following is not None:
        status = with_stage(status, StageStatus(name=following.name, state="Pending"))
    phase = (following or step.record).phase
    return Draft(status=status, phase=phase, message=f"{stage.name} is complete", at_once=True)


def _suspend(step: Step) -> Draft:
    """End the attempt; another one, which no budget pays for, goes on from its checkpoint."""
    status = step.status
    if step.training and step.stage.state == "Running":
        status = with_progress(status=status, observed=step.observed, plan=step.plan)
    status = with_stage(status, step.next_attempt())
    return Draft(status=status, phase="Suspended", message=SUSPENDED, at_once=True)


def _forgive(step: Step) -> Draft:
    """No other node has room: another attempt, which no budget pays for, may go to those that are avoided as well."""
    restarts = (step.status.restarts or Restarts()).model_copy(update={"nodes": []})
    status = with_stage(step.status.model_copy(update={"restarts": restarts}), step.next_attempt())
    message = "no other node has room: those on which the last attempts ended are tried again"
    return Draft(status=status, phase="Queued", reason=Reason.RESTARTING, message=message, at_once=True)


def _restart_or_fail(step: Step, broken: Broken) -> Draft:
    """Another attempt where the budget of the cause has one left; else the end of the run."""
    used, budget = step.status.restarts or Restarts(), broken.cause.budget
    limit = step.plan.allowance(budget)
    if limit > used_of(budget, used):
        return _restart(step, broken, used=used)
    spent = "" if budget is Budget.NONE else f"; failurePolicy.{budget} ({limit}) is used up"
    return _fail(step, reason=broken.reason, message=f"{broken.message}{spent}")


def _fail(step: Step, *, reason: str, message: str) -> Draft:
    """The run ends here. What still runs is ended at the next look, once that is recorded."""
    stage = step.timed_stage()
    failed = stage.model_copy(
        update={"state": "Failed", "completion_time": step.now, "active_seconds": step.seconds() or None}
    )
    status, message = with_stage(step.status, failed), f"{stage.name} failed: {message}"
    return Draft(status=status, phase="Failed", state="Stalled", reason=reason, message=message, at_once=True)


def _restart(step: Step, broken: Broken, *, used: Restarts) -> Draft:
    status = with_checkpoint(status=step.status, step=broken.checkpoint_step, plan=step.plan, now=step.observed.now)
    lost = _steps_lost(step, broken, status=status)
    ran = seconds_of_attempt(stage=step.timed_stage(), observed=step.observed)
    series = in_series(used=used, ran_seconds=ran, node=broken.node)
    restarts = charged(budget=broken.cause.budget, used=series).model_copy(
        update={
            "steps_lost": used.steps_lost + lost,
            "last": LastRestart(reason=broken.reason, time=step.now, message=broken.message[:_LONGEST_MESSAGE]),
        }
    )
    update: dict[str, object] = {"restarts": restarts}
    if step.training:
        update["trainer_status"] = None  # where the old attempt was is not where the new one begins
    number = step.stage.attempt
    return Draft(
        status=with_stage(status.model_copy(update=update), step.next_attempt()),
        phase=step.record.phase,
        reason=Reason.RESTARTING,
        message=f"attempt {number} of {step.stage.name} ended ({broken.reason}); attempt {number + 1} follows",
        at_once=True,
        restarted=Restarted(cause=broken.cause, steps_lost=lost),
    )


def _steps_lost(step: Step, broken: Broken, *, status: FineTuneJobStatus) -> int:
    """Steps since the newest checkpoint, by the last report. An attempt that saved before it stopped lost none."""
    resume = step.plan.checkpoint.resume == "Latest"
    if not step.training or (broken.saved_all and resume):
        return 0
    shown = with_progress(status=status, observed=step.observed, plan=step.plan)
    checkpoint = shown.checkpoint.step if shown.checkpoint else None
    return steps_lost(step=last_step(shown), checkpoint_step=checkpoint, resume=resume)
