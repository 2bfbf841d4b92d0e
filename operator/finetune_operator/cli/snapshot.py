"""A run as it is at one moment, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.finetunejob import STAGES, TERMINAL_PHASES, FineTuneJob, StageStatus, TrainerStatus
from finetune_api.progress import LOSS, STEP, TOKENS_PER_SECOND
from finetune_operator.cli import words
from finetune_operator.core.ports import ProgressSource
from finetune_operator.job.retry import is_asked

_TOTAL_STEPS = "total_steps"


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

    @classmethod
    def newest(cls, job: FineTuneJob, *, reports: ProgressSource | None, now: datetime) -> Snapshot:
        """A snapshot with what training said last: to `reports`, where there are any, else to the operator."""
        found = reports.latest(uid=job.metadata.uid) if reports is not None else None
        return cls.of(job=job, now=now, trainer=found.status if found is not None else job.status.trainer_status)

    @property
    def phase(self) -> str:
        """The job's phase."""
        return self.job.status.phase or "Pending"

    @property
    def ended(self) -> bool:
        """Whether the run has ended, and is not about to be tried again."""
        return self.phase in TERMINAL_PHASES and not is_asked(self.job)

    @property
    def stages(self) -> list[StageStatus]:
        """All stages, those to come included."""
        return [self.job.status.stage(name) or StageStatus(name=name, state="Pending") for name in STAGES]

    def took(self, stage: StageStatus) -> str:
        """How long a stage took, or has been taking; "" before its start."""
        if stage.start_time is None:
            return ""
        return words.seconds(max(0.0, ((stage.completion_time or self.now) - stage.start_time).total_seconds()))

    @property
    def fraction(self) -> float | None:
        """How far training is, 0 to 1."""
        step, total = self.metric(STEP), self.metric(_TOTAL_STEPS)
        if step is not None and total:
            return min(1.0, step / total)
        percentage = self.trainer.progress_percentage if self.trainer else None
        return None if percentage is None else percentage / 100

    @property
    def loss(self) -> float | None:
        """The training loss, a mean over the last steps."""
        return self.metric(LOSS)

    @property
    def training_words(self) -> str:
        """`step 12/72, loss 1.83, 412 tokens/s, 1 min 20 s left`; tokens without padding, of each process."""
        step, total, speed = self.metric(STEP), self.metric(_TOTAL_STEPS), self.metric(TOKENS_PER_SECOND)
        parts = [] if step is None else [f"step {step:.0f}" + (f"/{total:.0f}" if total else "")]
        parts += [] if self.loss is None else [f"loss {words.number(self.loss)}"]
        parts += [] if speed is None else [f"{speed:.0f} tokens/s"]
        if step and self.trainer is not None and self.trainer.estimated_remaining_seconds is not None:
            parts.append(f"{words.seconds(self.trainer.estimated_remaining_seconds)} left")
        return ", ".join(parts)

    def metric(self, name: str) -> float | None:
        """A number of the report; None where it has none."""
        text = self.trainer.metric(name) if self.trainer else None
        try:
            return None if text is None else float(text)
        except ValueError:
            return None
