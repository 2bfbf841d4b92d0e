"""What is to be done about one job: the answer of `decide`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus, Phase
from finetune_api.shared_fields import NextStatus
from finetune_operator.attempts.restarts import Cause
from finetune_operator.core.conditions import State, Summary
from finetune_operator.core.controller import ChildRef, Event
from finetune_operator.core.ports import Manifest


@dataclass(frozen=True, kw_only=True)
class Restarted:
    """For metrics: an attempt ended and another one will begin."""

    cause: Cause
    steps_lost: int


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
    restarted: Restarted | None = None
    forget_progress: bool = False
    """What was reported so far came from attempts that are over."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A decision in the making: `finish.finish` turns it into one."""

    status: FineTuneJobStatus
    """Stages, plan, counts and results are up to date; phase, message and conditions are not yet."""
    phase: Phase
    state: State = "Reconciling"
    reason: str = ""
    """Of the conditions; "": the phase."""
    message: str
    delete: tuple[ChildRef, ...] = ()
    create: tuple[Manifest, ...] = ()
    look_again: tuple[datetime | None, ...] = ()
    until: datetime | None = None
    """When what it waits for is given up, or comes by itself."""
    next: NextStatus | None = None
    """What the rollout waits for; None: it follows from phase and reason."""
    void: str = ""
    """Why what a person asked for comes to nothing."""
    at_once: bool = False
    """This write records what the next step depends on."""
    restarted: Restarted | None = None
    forget_progress: bool = False

    @property
    def summary(self) -> Summary:
        """How the job is, in one of three states."""
        return Summary(state=self.state, reason=self.reason or self.phase, message=self.message)
