"""From a draft to a decision: phase, conditions, counters, events, and whether there is anything to write at all."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJobStatus, Phase
from finetune_api.progress import MINIMUM_INTERVAL_SECONDS
from finetune_operator.controller import Event, State
from finetune_operator.job.accounting import with_counters
from finetune_operator.job.cleanup import sidecars_due
from finetune_operator.job.conditions import Summary, conditions
from finetune_operator.job.decision import Decision, Draft, Evaluated, Finished, Observation, PhaseLeft
from finetune_operator.job.observed import Observed
from finetune_operator.job.times import after, seconds_until, whole_second

_COUNTERS = ("activeSeconds", "gpuSeconds")
_FLOWING = (*_COUNTERS, "trainerStatus", "checkpoint")
"""What changes all the time while a run trains: written at most every MINIMUM_INTERVAL_SECONDS."""
_CALM = ("Restarting", "Stopping", "Starting")
"""Reasons besides the phase's own that nobody needs to be warned of (a restart has an Event of its own)."""
_COUNTER_SECONDS = 60
"""Counters alone are written when they have moved by this much."""


def finish(*, observed: Observed, draft: Draft) -> Decision:
    """The decision. A draft that says what is known already writes nothing."""
    job, now = observed.job, observed.now
    new = summarised(
        status=with_counters(status=draft.status, observed=observed),
        phase=draft.phase,
        summary=draft.summary,
        suspended=bool(job.spec.suspend),
        generation=job.metadata.generation,
        now=now,
    )
    sidecars = [time for time in sidecars_due(job=job, attempts=observed.attempts).values() if time > now]
    due = [seconds_until(due=time, now=now) for time in (*draft.look_again, *sidecars)]
    write, wait = _worth_writing(before=job.status, after_=new, now=now)
    if wait is not None:
        due.append(wait)
    return Decision(
        delete=draft.delete,
        create=draft.create,
        status=new if write else None,
        requeue_seconds=0.0 if draft.at_once else min(due, default=None),
        events=events_between(before=job.status, after_=new) if write else (),
        observations=_observations(before=job.status, draft=draft, new=new) if write else (),
        forget_progress=draft.forget_progress,
    )


def summarised(
    *,
    status: FineTuneJobStatus,
    phase: Phase,
    summary: Summary,
    suspended: bool,
    generation: int,
    now: datetime,
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
            "completion_time": status.completion_time or now if ended else None,
            "conditions": conditions(
                status=status,
                summary=summary,
                suspended=suspended and not ended,
                generation=generation,
                now=now,
            ),
        }
    )


def held(
    *, status: FineTuneJobStatus, state: State, reason: str, message: str, generation: int, now: datetime
) -> FineTuneJobStatus:
    """The status of a job that cannot be worked on now: all stays as it is, and the conditions say why."""
    phase: Phase = status.phase or "Pending"
    suspended = status.condition("Suspended") is not None
    summary = Summary(state=state, reason=reason, message=message)
    return summarised(status=status, phase=phase, summary=summary, suspended=suspended, generation=generation, now=now)


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


def _observations(*, before: FineTuneJobStatus, draft: Draft, new: FineTuneJobStatus) -> tuple[Observation, ...]:
    found: list[Observation] = [draft.restarted] if draft.restarted else []
    if before.phase is not None and before.phase != new.phase and before.phase_start_time and new.phase_start_time:
        seconds = (new.phase_start_time - before.phase_start_time).total_seconds()
        found.append(PhaseLeft(phase=before.phase, seconds=max(0.0, seconds)))
    if new.evaluation is not None and before.evaluation is None:
        found.append(Evaluated(verdict=new.evaluation.verdict))
    if new.phase in TERMINAL_PHASES and before.phase != new.phase:
        found.append(Finished(phase=new.phase))
    return tuple(found)
