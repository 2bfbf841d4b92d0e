"""From a draft to a decision: phase, conditions, counters, events, and whether there is anything to write at all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from finetune_api.base import Condition
from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJobStatus, Phase
from finetune_api.progress import MINIMUM_INTERVAL_SECONDS
from finetune_api.shared_fields import NextStatus, Release
from finetune_operator.core.conditions import Summary, Wanted, of_summary, stamped, what_holds
from finetune_operator.core.controller import Event
from finetune_operator.core.reasons import Reason
from finetune_operator.core.refusals import release_of
from finetune_operator.core.times import after, seconds_until, whole_second
from finetune_operator.job.cleanup import sidecars_due
from finetune_operator.job.decision import Decision, Draft
from finetune_operator.job.observed import Observed
from finetune_operator.job.stages import EVALUATE, ORDERED
from finetune_operator.job.step import with_counters

_COUNTERS = ("activeSeconds", "gpuSeconds")
_FLOWING = (*_COUNTERS, "trainerStatus", "checkpoint")
"""What changes all the time while a run trains: written at most every MINIMUM_INTERVAL_SECONDS."""
_CALM = (Reason.RESTARTING, Reason.STOPPING, Reason.STARTING)
"""Reasons besides the phase's own that nobody needs to be warned of (a restart has an Event of its own)."""
_COUNTER_SECONDS = 60
"""Counters alone are written when they have moved by this much."""
_WAITS: dict[str, str] = {
    Reason.QUEUED: "room in its queue: whoever runs the queue can give more, or other runs end",
    Reason.SCHEDULING_GATED: "its scheduling gates to be taken away by whoever set them: there is no time limit",
    Reason.UNSCHEDULABLE: "a node with room for it, from whoever runs the cluster: there is no time limit",
    Reason.PODS_NOT_CREATED: "its pods to be let in: a quota or a policy may refuse them",
    Reason.RESTARTING: "the pods of the last attempt to end",
    Reason.STOPPING: "its last pods to end",
    Reason.STARTING: "its pods to start",
    Reason.IMAGE_PULL_FAILING: "its image, which cannot be pulled so far",
    Reason.CONTAINER_CONFIG_INVALID: "what its container needs: a Secret may be missing",
}
"""By reason."""
_THEN: dict[str, str] = {
    Reason.UNSCHEDULABLE: "nodes on which the last attempts ended are tried again",
    Reason.IMAGE_PULL_FAILING: "not there by then: the job fails",
    Reason.CONTAINER_CONFIG_INVALID: "not there by then: the job fails",
}
"""What follows a wait that ends by itself."""
_WORK: dict[str, tuple[str, str]] = {
    "Preparing": ("Prepare to end", "Train"),
    "Training": ("Train to end", "Evaluate"),
    "Evaluating": ("Evaluate to end", "the verdict"),
}


def finish(*, observed: Observed, draft: Draft) -> Decision:
    """The decision. A draft that says what is known already writes nothing."""
    job, now = observed.job, observed.now
    new = summarised(
        status=with_counters(status=draft.status, observed=observed),
        phase=draft.phase,
        summary=draft.summary,
        next_=draft.next
        or next_of(phase=draft.phase, summary=draft.summary, until=draft.until, planned=draft.status.plan is not None),
        suspended=bool(job.spec.suspend),
        void=draft.void,
        generation=job.metadata.generation,
        now=now,
    )
    sidecars = [time for time in sidecars_due(job=job, attempts=observed.attempts).values() if time > now]
    due = [seconds_until(due=time, now=now) for time in (*draft.look_again, *sidecars) if time is not None]
    write, wait = _worth_writing(before=job.status, after_=new, now=now)
    if wait is not None:
        due.append(wait)
    return Decision(
        delete=draft.delete,
        create=draft.create,
        status=new if write else None,
        requeue_seconds=0.0 if draft.at_once else min(due, default=None),
        events=events_between(before=job.status, after_=new) if write else (),
        restarted=draft.restarted if write else None,
        forget_progress=draft.forget_progress,
    )


def summarised(
    *,
    status: FineTuneJobStatus,
    phase: Phase,
    summary: Summary,
    next_: NextStatus | None,
    suspended: bool,
    generation: int,
    now: datetime,
    void: str = "",
) -> FineTuneJobStatus:
    """The status with what follows from the rest of it."""
    now = whole_second(now)
    ended = phase in TERMINAL_PHASES
    return status.model_copy(
        update={
            "observed_generation": generation,
            "phase": phase,
            "phase_start_time": status.phase_start_time if status.phase == phase else now,
            "message": summary.message,
            "next": next_,
            "completion_time": status.completion_time or now if ended else None,
            "conditions": conditions(
                status=status,
                summary=summary,
                suspended=suspended and not ended,
                void=void,
                generation=generation,
                now=now,
            ),
        }
    )


def held(*, status: FineTuneJobStatus, summary: Summary, generation: int, now: datetime) -> FineTuneJobStatus:
    """The status of a job that cannot be worked on now: all stays as it is, and the conditions say why."""
    return summarised(
        status=status,
        phase=status.phase or "Pending",
        summary=summary,
        next_=what_holds(summary),
        suspended=status.condition("Suspended") is not None,
        generation=generation,
        now=now,
    )


def events_between(*, before: FineTuneJobStatus, after_: FineTuneJobStatus) -> tuple[Event, ...]:
    """What a person would want to be told of: a new phase, or another reason within a phase."""
    old, new = before.condition("Ready"), after_.condition("Ready")
    events = []
    restart = after_.restarts.last if after_.restarts else None
    if restart is not None and restart != (before.restarts.last if before.restarts else None):
        events.append(Event(type="Warning", reason=restart.reason, message=restart.message or ""))
    if new is not None and (before.phase != after_.phase or old is None or old.reason != new.reason):
        calm = after_.condition("Stalled") is None and new.reason in {after_.phase, *_CALM}
        events.append(Event(type="Normal" if calm else "Warning", reason=new.reason, message=after_.message or ""))
    return tuple(events)


# -- its conditions: its state, how far its stages are, and what became of its version ---------------------------------


def conditions(
    *, status: FineTuneJobStatus, summary: Summary, suspended: bool, void: str, generation: int, now: datetime
) -> list[Condition]:
    """The conditions of a status whose stages and evaluation are up to date. `status.conditions`: those before."""
    wanted = of_summary(summary)
    if suspended:
        wanted.append(Wanted("Suspended", "True", Reason.SUSPENDED, "spec.suspend is true"))
    if void:
        wanted.append(Wanted(Reason.REQUEST_VOID, "True", Reason.RETRY_USELESS, void))
    wanted += _stage_conditions(status)
    if status.rollout is not None:
        promoted = status.rollout.promoted
        serves = promoted and summary.reason != Reason.ROLLED_BACK
        wanted.append(Wanted("Promoted", "True" if promoted else "False", Reason.SERVING if serves else summary.reason))
    return stamped(wanted, before=status.conditions, generation=generation, now=now)


def _stage_conditions(status: FineTuneJobStatus) -> Sequence[Wanted]:
    wanted = []
    for record in ORDERED:
        stage, type_ = status.stage(record.name), record.condition
        if stage is not None and stage.state == "Complete":
            verdict = status.evaluation.verdict if record is EVALUATE and status.evaluation else None
            wanted.append(Wanted(type_, "True", verdict or Reason.COMPLETE))
        elif stage is not None and stage.state == "Failed":
            wanted.append(Wanted(type_, "False", Reason.FAILED))
        else:
            begun = stage is not None and (stage.state != "Pending" or stage.attempt > 1)
            wanted.append(Wanted(type_, "False", Reason.IN_PROGRESS if begun else Reason.NOT_STARTED))
    return wanted


# -- what it waits for: nothing that changes while nothing happens, or it would be written at every look ---------------


def next_of(*, phase: Phase, summary: Summary, until: datetime | None, planned: bool) -> NextStatus | None:
    """None: it has ended, and waits for nothing. `planned`: all that it names was there."""
    if phase in TERMINAL_PHASES:
        return None
    if summary.state == "Stalled":
        return what_holds(summary)
    if phase == "Suspended":
        effect = "it goes on from the newest checkpoint"
        return NextStatus(waits_for=["spec.suspend to be false"], release=[Release(action="Unsuspend", effect=effect)])
    if not planned:
        return NextStatus(waits_for=[summary.message], until=until, then=["not there by then: the job fails"])
    if summary.reason in _WAITS:
        then = [_THEN[summary.reason]] if until is not None and summary.reason in _THEN else []
        return NextStatus(waits_for=[_wait(summary, paused=until is not None)], until=until, then=then)
    work, following = _WORK.get(phase, ("its first pod", ""))
    return NextStatus(waits_for=[work], then=[following] if following else [])


def _wait(summary: Summary, *, paused: bool) -> str:
    """What is waited for, as exactly as the message tells it."""
    reason, message = summary.reason, summary.message
    if reason == Reason.PODS_NOT_CREATED and (release := release_of(message)):
        return f"its pods: {release}"
    if reason == Reason.RESTARTING and paused:
        return "the pause after a failure"
    image, cannot, _ = message.partition(" cannot be pulled")
    if reason == Reason.IMAGE_PULL_FAILING and cannot:
        return f"{image} to be pushed, or its pods to get the right to pull it"
    _, cannot, why = message.partition(" cannot start: ")
    if reason == Reason.CONTAINER_CONFIG_INVALID and cannot:
        return f"what its container needs: {why}"
    return _WAITS[reason]


# -- what to write -----------------------------------------------------------------------------------------------------


def _worth_writing(*, before: FineTuneJobStatus, after_: FineTuneJobStatus, now: datetime) -> tuple[bool, float | None]:
    """Whether to write now; else after how many seconds to look again at what was held back (None: nothing was)."""
    old, new = before.to_dict(), after_.to_dict()
    # Nothing flows while a run is suspended: a checkpoint now is the last word of a pod that is about to be gone.
    flowing = _COUNTERS if after_.phase == "Suspended" else _FLOWING
    if _without(old, flowing) != _without(new, flowing):
        return True, None
    if _without(old, _COUNTERS) != _without(new, _COUNTERS):
        last = before.trainer_status.last_updated_time if before.trainer_status else None
        due = after(last, MINIMUM_INTERVAL_SECONDS) if last else now
        return (True, None) if now >= due else (False, seconds_until(due=due, now=now))
    moved = abs((after_.active_seconds or 0) - (before.active_seconds or 0))
    return moved >= _COUNTER_SECONDS, None


def _without(status: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in status.items() if name not in names}
