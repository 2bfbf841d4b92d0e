"""One look at one stage: what all steps of a run have at hand, and how long its pods have been running.

Only running counts: not the queue, not the pull of an image, not a suspension. An attempt is running from the start of
its first container to the end of its last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.finetunejob import FineTuneJobStatus, Phase, StageStatus
from finetune_operator.attempts.judge import first_start, judge, last_end
from finetune_operator.attempts.observed import Attempt
from finetune_operator.attempts.verdicts import Verdict
from finetune_operator.core.times import whole_second
from finetune_operator.job.observed import Observed
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.stages import ORDERED, Stage, recorded_plan, stage_of


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
    def record(self) -> Stage:
        """What the stage is."""
        return stage_of(self.stage.name)

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
        return self.record.trains

    @property
    def phase(self) -> Phase:
        """The stage's phase; Pending until the first child of the run is made."""
        first = self.record is ORDERED[0] and self.stage.attempt == 1 and self.stage.state == "Pending"
        return "Pending" if first else self.record.phase

    @property
    def activity(self) -> str:
        """What the stage does, in words that stay the same while it does it."""
        return self.record.activity(self.plan)

    @property
    def child_uid(self) -> str | None:
        """The UID of the newest attempt's Job, as far as it was ever seen."""
        return self.attempt.job.ref.uid if self.attempt.job else self.stage.child_uid

    def timed_stage(self) -> StageStatus:
        """The stage with the start of its newest attempt, as far as it is known."""
        return self.stage.model_copy(update={"start_time": self.stage.start_time or first_start(self.attempt.pods)})

    def seconds(self) -> int:
        """How long all attempts of the stage have been running, the newest one included."""
        newest = seconds_of_attempt(stage=self.timed_stage(), observed=self.observed)
        return (self.stage.active_seconds or 0) + newest

    def next_attempt(self) -> StageStatus:
        """The stage with another attempt to come."""
        return StageStatus(
            name=self.stage.name,
            state="Pending",
            attempt=self.stage.attempt + 1,
            previous_child_uid=self.child_uid,
            active_seconds=self.seconds() or None,
        )


def judged(observed: Observed, *, plan: ResolvedPlan, stage: StageStatus) -> Verdict:
    """How the newest attempt of a stage is doing."""
    return judge(
        attempt=observed.attempt(stage.name, stage.attempt),
        stage=stage.name,
        size=stage_of(stage.name).size(plan).pods,
        now=observed.now,
        config=observed.config,
    )


def with_stage(status: FineTuneJobStatus, stage: StageStatus) -> FineTuneJobStatus:
    """The status with this stage in place of the one of its name, or added to it."""
    known = [stage if each.name == stage.name else each for each in status.stages]
    stages = known if any(each.name == stage.name for each in known) else [*known, stage]
    return status.model_copy(update={"stages": stages})


# -- how long ---------------------------------------------------------------------------------------------------------


def seconds_of_attempt(*, stage: StageStatus, observed: Observed) -> int:
    """How long the newest attempt of a stage has been running, or had been when it ended."""
    if stage.start_time is None:
        return 0
    attempt = observed.attempt(stage.name, stage.attempt)
    end = last_end(attempt=attempt)
    if end is None:
        # Nobody knows when it ended: up to its last report if there was one, since it may have been gone for hours.
        reported = observed.job.status.trainer_status
        last = (reported.last_updated_time if reported else None) or stage.start_time
        end = observed.now if any(pod.running for pod in attempt.pods) else last
    return max(0, int((end - stage.start_time).total_seconds()))


def active_seconds(*, status: FineTuneJobStatus, observed: Observed) -> int:
    """Seconds in which pods of the run have been running, until now."""
    return sum(_seconds(stage=stage, observed=observed) for stage in status.stages)


def with_counters(*, status: FineTuneJobStatus, observed: Observed) -> FineTuneJobStatus:
    """The status with its counters brought up to date."""
    plan = recorded_plan(status)
    if not isinstance(plan, ResolvedPlan):
        return status
    gpu_seconds = 0
    for stage in status.stages:
        size = stage_of(stage.name).size(plan)
        gpu_seconds += _seconds(stage=stage, observed=observed) * size.pods * size.gpus
    current = next((stage for stage in status.stages if stage.state != "Complete"), None)
    return status.model_copy(
        update={
            "active_seconds": active_seconds(status=status, observed=observed),
            "gpu_seconds": gpu_seconds if plan.gpus_per_node else None,
            "attempt": current.attempt if current else status.attempt,
        }
    )


def _seconds(*, stage: StageStatus, observed: Observed) -> int:
    """All attempts of a stage together; those that are over are recorded, the newest one is measured while it runs."""
    live = seconds_of_attempt(stage=stage, observed=observed) if stage.state == "Running" else 0
    return (stage.active_seconds or 0) + live
