"""A run as it is at one moment, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.finetunejob import STAGES, FineTuneJob, StageName, StageState, TrainerStatus
from finetune_api.progress import LOSS, STEP, TOKENS_PER_SECOND
from finetune_operator.cli import words

_TOTAL_STEPS = "total_steps"
_PENDING: StageState = "Pending"


@dataclass(frozen=True, kw_only=True)
class StageView:
    """One stage, in words."""

    name: StageName
    state: StageState
    attempt: int = 1
    seconds: float | None = None
    text: str = ""
    """What it came to, or why it is where it is."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A job and the newest report of its training processes, which may be fresher than the job's status."""

    job: FineTuneJob
    now: datetime
    trainer: TrainerStatus | None = None

    @classmethod
    def of(cls, *, job: FineTuneJob, now: datetime, trainer: TrainerStatus | None) -> Snapshot:
        """A snapshot with a report only if the attempt that trains now has sent it."""
        stage = job.status.stage("Train")
        started = stage.start_time if stage is not None and stage.state == "Running" else None
        sent = trainer.last_updated_time if trainer is not None else None
        is_current = started is not None and sent is not None and sent >= started
        return cls(job=job, now=now, trainer=trainer if is_current else None)

    @property
    def phase(self) -> str:
        """The job's phase."""
        return self.job.status.phase or "Pending"

    @property
    def stages(self) -> list[StageView]:
        """All stages, those to come included."""
        return [self._stage(name) for name in STAGES]

    @property
    def fraction(self) -> float | None:
        """How far training is, 0 to 1."""
        step, total = self._metric(STEP), self._metric(_TOTAL_STEPS)
        if step is not None and total:
            return min(1.0, step / total)
        percentage = self.trainer.progress_percentage if self.trainer else None
        return None if percentage is None else percentage / 100

    @property
    def steps(self) -> str:
        """`step 12/72`."""
        step, total = self._metric(STEP), self._metric(_TOTAL_STEPS)
        if step is None:
            return ""
        return f"step {step:.0f}" + (f"/{total:.0f}" if total else "")

    @property
    def loss(self) -> float | None:
        """The training loss, a mean over the last steps."""
        return self._metric(LOSS)

    @property
    def tokens_per_second(self) -> float | None:
        """Non-padding tokens a second and process."""
        return self._metric(TOKENS_PER_SECOND)

    @property
    def remaining_seconds(self) -> float | None:
        """Until the end of training, at the pace so far."""
        return self.trainer.estimated_remaining_seconds if self.trainer else None

    @property
    def training_words(self) -> str:
        """`step 12/72, loss 1.83, 412 tokens/s, 1 min 20 s left`."""
        parts = [self.steps]
        if self.loss is not None:
            parts.append(f"loss {words.number(self.loss)}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        if self.remaining_seconds is not None and self._metric(STEP):
            parts.append(f"{words.seconds(self.remaining_seconds)} left")
        return ", ".join(part for part in parts if part)

    def _stage(self, name: StageName) -> StageView:
        stage = self.job.status.stage(name)
        if stage is None:
            return StageView(name=name, state=_PENDING)
        seconds = None
        if stage.start_time is not None:
            seconds = max(0.0, ((stage.completion_time or self.now) - stage.start_time).total_seconds())
        return StageView(
            name=name,
            state=stage.state,
            attempt=stage.attempt,
            seconds=seconds,
            text=words.stage_result(stage.result),
        )

    def _metric(self, name: str) -> float | None:
        text = self.trainer.metric(name) if self.trainer else None
        try:
            return None if text is None else float(text)
        except ValueError:
            return None
