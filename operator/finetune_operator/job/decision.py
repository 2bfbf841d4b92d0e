"""What is to be done about one job: the answer of `decide`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus, Phase
from finetune_api.shared_fields import Verdict
from finetune_operator.controller import ChildRef, Event
from finetune_operator.job.conditions import Summary
from finetune_operator.job.restarts import Budget, Cause
from finetune_operator.ports import Manifest


@dataclass(frozen=True, kw_only=True)
class Restarted:
    """For metrics: an attempt ended and another one will begin."""

    cause: Cause
    budget: Budget
    steps_lost: int


@dataclass(frozen=True, kw_only=True)
class PhaseLeft:
    """For metrics: a job was in a phase for so long."""

    phase: Phase
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """For metrics: a comparison is over."""

    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Finished:
    """For metrics: a job has ended."""

    phase: Phase


Observation = Restarted | PhaseLeft | Evaluated | Finished


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Carried out in this order: delete, create, write the status, tell."""

    delete: tuple[ChildRef, ...] = ()
    create: tuple[Manifest, ...] = ()
    """Create-only; one that is there already and is ours counts as created."""
    status: FineTuneJobStatus | None = None
    """The whole new status; None: it stays as it is."""
    requeue_seconds: float | None = None
    """When to look again; 0: at once. None: an event will tell."""
    events: tuple[Event, ...] = ()
    observations: tuple[Observation, ...] = ()
    forget_progress: bool = False
    """What was reported so far came from attempts that are over."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A decision in the making: `finish.finish` turns it into one."""

    status: FineTuneJobStatus
    """Stages, plan, counts and results are up to date; phase, message and conditions are not yet."""
    phase: Phase
    summary: Summary
    delete: tuple[ChildRef, ...] = ()
    create: tuple[Manifest, ...] = ()
    look_again: tuple[datetime, ...] = ()
    at_once: bool = False
    """This write records what the next step depends on."""
    restarted: Restarted | None = None
    forget_progress: bool = False
