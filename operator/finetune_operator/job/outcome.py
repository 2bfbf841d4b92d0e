"""What an attempt has come to: a result, another attempt, or the end of the run. Recorded before anything follows."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.finetunejob import EvaluationStatus, FineTuneJobStatus, LastRestart, Restarts, StageStatus
from finetune_api.results import EvaluateResult
from finetune_operator.gates.verdict import overall_verdict
from finetune_operator.job.accounting import seconds_of_attempt
from finetune_operator.job.attempt import last_end
from finetune_operator.job.conditions import Summary
from finetune_operator.job.decision import Draft, Restarted
from finetune_operator.job.reports import last_step, with_checkpoint, with_progress
from finetune_operator.job.restarts import Budget, budget_of, charged, in_series, left, steps_lost
from finetune_operator.job.stages import PHASE_OF_STAGE, stage_after
from finetune_operator.job.step import SUSPENDED, Step, with_stage
from finetune_operator.job.verdicts import Broken, Succeeded

_LONGEST_MESSAGE = 1024


def record(step: Step, succeeded: Succeeded) -> Draft:
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
    if isinstance(result, EvaluateResult):
        status = status.model_copy(update={"evaluation": _evaluation(result)})
    following = stage_after(stage.name)
    if following is not None:
        status = with_stage(status, StageStatus(name=following, state="Pending"))
    phase = PHASE_OF_STAGE[following or stage.name]
    draft = step.draft(status=status, phase=phase, reason=phase, message=f"{stage.name} is complete")
    return replace(draft, at_once=True)


def suspend(step: Step) -> Draft:
    """End the attempt; another one, which no budget pays for, goes on from its checkpoint."""
    status = step.status
    if step.training and step.stage.state == "Running":
        status = with_progress(status=status, observed=step.observed, plan=step.plan)
    status = with_stage(status, step.next_attempt())
    draft = step.draft(status=status, phase="Suspended", reason="Suspended", message=SUSPENDED)
    return replace(draft, at_once=True)


def forgive(step: Step) -> Draft:
    """No other node has room: another attempt, which no budget pays for, may go to those that are avoided as well."""
    restarts = (step.status.restarts or Restarts()).model_copy(update={"nodes": []})
    status = with_stage(step.status.model_copy(update={"restarts": restarts}), step.next_attempt())
    draft = step.draft(
        status=status,
        phase="Queued",
        reason="Restarting",
        message="no other node has room: those on which the last attempts ended are tried again",
    )
    return replace(draft, at_once=True)


def restart_or_fail(step: Step, broken: Broken) -> Draft:
    """Another attempt where the budget of the cause has one left; else the end of the run."""
    used = step.status.restarts or Restarts()
    budget = budget_of(broken.cause)
    if left(budget=budget, used=used, plan=step.plan) > 0:
        return _restart(step, broken, used=used, budget=budget)
    message = broken.message
    if budget is not Budget.NONE:
        limit = step.plan.max_failures if budget is Budget.FAILURES else step.plan.max_preemptions
        message = f"{message}; failurePolicy.{budget} ({limit}) is used up"
    return fail(step, reason=broken.reason, message=message)


def fail(step: Step, *, reason: str, message: str) -> Draft:
    """The run ends here. What still runs is ended at the next look, once that is recorded."""
    stage = step.timed_stage()
    failed = stage.model_copy(
        update={"state": "Failed", "completion_time": step.now, "active_seconds": step.seconds() or None}
    )
    return Draft(
        status=with_stage(step.status, failed),
        phase="Failed",
        summary=Summary(state="Stalled", reason=reason, message=f"{stage.name} failed: {message}"),
        at_once=True,
    )


def _restart(step: Step, broken: Broken, *, used: Restarts, budget: Budget) -> Draft:
    now = step.observed.now
    status = with_checkpoint(status=step.status, step=broken.checkpoint_step, plan=step.plan, now=now)
    lost = _steps_lost(step, broken, status=status)
    ran = seconds_of_attempt(stage=step.timed_stage(), observed=step.observed)
    series = in_series(used=used, ran_seconds=ran, node=broken.node)
    restarts = charged(budget=budget, used=series).model_copy(
        update={
            "steps_lost": used.steps_lost + lost,
            "last": LastRestart(reason=broken.reason, time=step.now, message=broken.message[:_LONGEST_MESSAGE]),
        }
    )
    update: dict[str, object] = {"restarts": restarts}
    if step.training:
        update["trainer_status"] = None  # where the old attempt was is not where the new one begins
    status = with_stage(status.model_copy(update=update), step.next_attempt())
    number = step.stage.attempt
    draft = step.draft(
        status=status,
        phase=PHASE_OF_STAGE[step.stage.name],
        reason="Restarting",
        message=f"attempt {number} of {step.stage.name} ended ({broken.reason}); attempt {number + 1} follows",
    )
    return replace(draft, at_once=True, restarted=Restarted(cause=broken.cause, budget=budget, steps_lost=lost))


def _steps_lost(step: Step, broken: Broken, *, status: FineTuneJobStatus) -> int:
    """Steps since the newest checkpoint, by the last report. An attempt that saved before it stopped lost none."""
    resume = step.plan.checkpoint.resume == "Latest"
    if not step.training or (broken.saved_all and resume):
        return 0
    shown = with_progress(status=status, observed=step.observed, plan=step.plan)
    checkpoint = shown.checkpoint.step if shown.checkpoint else None
    return steps_lost(step=last_step(shown), checkpoint_step=checkpoint, resume=resume)


def _evaluation(result: EvaluateResult) -> EvaluationStatus:
    verdict = overall_verdict(rows=result.results, reported=result.verdict)
    return EvaluationStatus(verdict=verdict, results=result.results, report=result.report)
