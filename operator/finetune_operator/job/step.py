"""One look at one stage: what all steps of a run have at hand, and the draft that they share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus, Phase, StageStatus
from finetune_operator.job.accounting import seconds_before, seconds_of_attempt
from finetune_operator.job.attempt import first_start
from finetune_operator.job.conditions import Summary
from finetune_operator.job.decision import Draft
from finetune_operator.job.observed import Attempt, Observed
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.stages import PHASE_OF_STAGE
from finetune_operator.job.times import whole_second

SUSPENDED = "suspended; with spec.suspend false it goes on from the newest checkpoint"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage that is not complete, and all that is known about the run around it."""

    observed: Observed
    plan: ResolvedPlan
    stage: StageStatus

    @property
    def status(self) -> FineTuneJobStatus:
        """The status as it was read."""
        return self.observed.job.status

    @property
    def attempt(self) -> Attempt:
        """The children of the stage's newest attempt."""
        return self.observed.attempt(self.stage.name, self.stage.attempt)

    @property
    def now(self) -> datetime:
        """The time, as a status remembers it."""
        return whole_second(self.observed.now)

    @property
    def training(self) -> bool:
        """Whether this is the stage that reports and leaves checkpoints."""
        return self.stage.name == "Train"

    @property
    def phase(self) -> Phase:
        """The stage's phase; Pending until the first child of the run is made."""
        first = self.stage.name == "Prepare" and self.stage.attempt == 1 and self.stage.state == "Pending"
        return "Pending" if first else PHASE_OF_STAGE[self.stage.name]

    @property
    def activity(self) -> str:
        """What the stage does, in words that stay the same while it does it."""
        if self.stage.name == "Prepare":
            return "reading and checking the data and the base model"
        if self.stage.name == "Train":
            return f"training on {self.plan.machines}"
        baseline = self.plan.baseline.name if self.plan.baseline else "the base model"
        return f"comparing the candidate with {baseline} on the held-out examples"

    @property
    def child_uid(self) -> str | None:
        """The UID of the newest attempt's Job, as far as it was ever seen."""
        return self.attempt.job.ref.uid if self.attempt.job else self.stage.child_uid

    def timed_stage(self) -> StageStatus:
        """The stage with the start of its newest attempt, as far as it is known."""
        return self.stage.model_copy(update={"start_time": self.stage.start_time or first_start(self.attempt.pods)})

    def seconds(self) -> int:
        """How long all attempts of the stage have been running, the newest one included."""
        return seconds_before(self.stage) + seconds_of_attempt(stage=self.timed_stage(), observed=self.observed)

    def next_attempt(self) -> StageStatus:
        """The stage with another attempt to come."""
        return StageStatus(
            name=self.stage.name,
            state="Pending",
            attempt=self.stage.attempt + 1,
            previous_child_uid=self.child_uid,
            active_seconds=self.seconds() or None,
        )

    def draft(
        self,
        *,
        status: FineTuneJobStatus,
        phase: Phase,
        reason: str,
        message: str,
        look_again: tuple[datetime | None, ...] = (),
    ) -> Draft:
        """A draft of a run that goes on."""
        return Draft(
            status=status,
            phase=phase,
            summary=Summary(state="Reconciling", reason=reason, message=message),
            look_again=tuple(time for time in look_again if time is not None),
        )


def with_stage(status: FineTuneJobStatus, stage: StageStatus) -> FineTuneJobStatus:
    """The status with this stage in place of the one of its name, or added to it."""
    known = [stage if each.name == stage.name else each for each in status.stages]
    stages = known if any(each.name == stage.name for each in known) else [*known, stage]
    return status.model_copy(update={"stages": stages})
