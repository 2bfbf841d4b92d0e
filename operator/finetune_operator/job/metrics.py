"""Prometheus metrics of jobs: what runs, and what came of it."""

from __future__ import annotations

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram

from finetune_api.finetunejob import TERMINAL_PHASES, EvaluationStatus, FineTuneJobStatus, Phase, TrainerStatus
from finetune_api.progress import GPU_MEMORY, GRAD_NORM, LEARNING_RATE, LOSS, MFU, STEP, TOKENS_PER_SECOND
from finetune_api.shared_fields import Verdict
from finetune_operator.attempts.restarts import Budget, Cause
from finetune_operator.core.metrics import DAYS_BUCKETS, ObjectGauges, PhaseGauge, Waits, labels_of
from finetune_operator.core.ports import Key
from finetune_operator.core.reasons import Reason
from finetune_operator.job.decision import Restarted

EVALUATIONS_SHOWN = 500
"""Jobs whose evaluation is shown as gauges: the newest. ModelVersions keep all of them."""
TRAININGS_SHOWN = 1000
"""Jobs whose training is shown as gauges: those that began first. A scrape has to stay small."""
OTHER_REASON = "Other"
"""Of a failure: what a container made up."""

_TRAINING = {
    "finetune_training_step": (STEP, "Optimiser steps done."),
    "finetune_training_loss": (LOSS, "Training loss, as reported last."),
    "finetune_training_learning_rate": (LEARNING_RATE, "Learning rate, as reported last."),
    "finetune_training_gradient_norm": (GRAD_NORM, "Norm of all gradients before they were clipped."),
    "finetune_training_tokens_per_second": (
        TOKENS_PER_SECOND,
        "Non-padding tokens per second and GPU (or CPU process).",
    ),
    "finetune_training_mfu_ratio": (MFU, "Share of the GPU's arithmetic peak that training uses."),
    "finetune_training_gpu_memory_bytes": (GPU_MEMORY, "The most that the first process has reserved on its GPU."),
}
_PROGRESS = "finetune_training_progress_ratio"
_REMAINING = "finetune_training_remaining_seconds"
_EVALUATION = "finetune_eval_metric"
_DIFFERENCE = "finetune_eval_difference"
_PEOPLE = frozenset({"Suspended", "AwaitingApproval", "Paused"})
_WAITS: dict[str, str] = {
    Reason.QUEUED: "quota",
    Reason.PODS_NOT_CREATED: "quota",
    Reason.SCHEDULING_GATED: "quota",
    Reason.UNSCHEDULABLE: "nodes",
}


class JobMetrics:
    """Gauges of what is now; counters of what has ended since this process leads."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        self.phases = PhaseGauge("finetune_jobs", "FineTuneJobs by phase.", phases=Phase, registry=registry)
        self.waits = Waits("job", for_whom=("person", "quota", "nodes"), registry=registry)
        self.phase_seconds = Histogram(
            "finetune_job_phase_duration_seconds",
            "How long jobs were in a phase that they have left.",
            ["phase"],
            buckets=DAYS_BUCKETS,
            registry=registry,
        )
        self.restarts = Counter("finetune_restarts_total", "New attempts, by cause.", ["reason"], registry=registry)
        self.preemptions = Counter(
            "finetune_preemptions_total", "New attempts after interruptions, by cause.", ["reason"], registry=registry
        )
        self.steps_lost = Counter(
            "finetune_steps_lost_total", "Optimiser steps done again, by cause.", ["reason"], registry=registry
        )
        self.verdicts = Counter(
            "finetune_eval_verdicts_total", "Evaluations, by verdict.", ["verdict"], registry=registry
        )
        self.finished = Counter(
            "finetune_jobs_finished_total", "Jobs that ended, by phase.", ["phase"], registry=registry
        )
        self.failed = Counter(
            "finetune_jobs_failed_total", "Jobs that failed, by reason.", ["reason"], registry=registry
        )
        self._training = ObjectGauges(registry=registry, most=TRAININGS_SHOWN)
        for name, (_, text) in _TRAINING.items():
            self._training.add(name, text)
        self._training.add(_PROGRESS, "Share of the training done.")
        self._training.add(_REMAINING, "Seconds of training left, at the pace so far.")
        self._evaluations = ObjectGauges(registry=registry, most=EVALUATIONS_SHOWN)
        newest = f"of the newest {EVALUATIONS_SHOWN} jobs"
        self._evaluations.add(_EVALUATION, f"Metrics of the evaluation, {newest}.", "metric", "role")
        text = f"Candidate less baseline, and the ends of its interval, {newest}."
        self._evaluations.add(_DIFFERENCE, text, "metric", "bound")
        causes, interruptions = tuple(Cause), [cause for cause in Cause if cause.budget is Budget.PREEMPTIONS]
        for counter, labels in (
            (self.finished, sorted(TERMINAL_PHASES)),
            (self.failed, (*causes, OTHER_REASON)),
            (self.verdicts, labels_of(Verdict)),
            (self.restarts, causes),
            (self.preemptions, interruptions),
            (self.steps_lost, causes),
        ):
            for label in labels:
                counter.labels(label)

    def show(
        self,
        *,
        key: Key,
        before: FineTuneJobStatus,
        status: FineTuneJobStatus,
        now: datetime,
        restarted: Restarted | None = None,
    ) -> None:
        """The job is like this now, and was like that before."""
        phase = status.phase or "Pending"
        self.phases.show(key, phase)
        since = status.phase_start_time
        self.waits.show(key, phase=phase, waits_for=_waits_for(status), since=since, now=now)
        if phase == "Training" and status.trainer_status is not None:
            self.show_training(key=key, status=status.trainer_status)
        elif phase in TERMINAL_PHASES:
            self._training.forget(key)
            self.waits.forget(key)
        if restarted is not None:
            cause = restarted.cause
            self.restarts.labels(cause).inc()
            self.steps_lost.labels(cause).inc(restarted.steps_lost)
            if cause.budget is Budget.PREEMPTIONS:
                self.preemptions.labels(cause).inc()
        if before.phase is not None and before.phase != phase and before.phase_start_time and since:
            self.phase_seconds.labels(before.phase).observe(max(0.0, (since - before.phase_start_time).total_seconds()))
        if phase in TERMINAL_PHASES and before.phase != phase:
            self.finished.labels(phase).inc()
            if phase == "Failed":
                self.failed.labels(_failure(status)).inc()
        if status.evaluation is not None:
            if before.evaluation is None:
                self.verdicts.labels(status.evaluation.verdict).inc()
            if before.evaluation is None or not self._evaluations.full:  # the latter: from before this process led
                self.show_evaluation(key=key, evaluation=status.evaluation)

    def show_training(self, *, key: Key, status: TrainerStatus) -> None:
        """The newest progress of a job that trains."""
        if key not in self._training and self._training.full:
            return
        done = status.progress_percentage
        values: dict[tuple[str, ...], float | None] = {
            (_PROGRESS,): None if done is None else done / 100,
            (_REMAINING,): status.estimated_remaining_seconds,
        }
        for name, (reported, _) in _TRAINING.items():
            values[name,] = _number(status.metric(reported))
        self._training.show(key, values)

    def show_evaluation(self, *, key: Key, evaluation: EvaluationStatus) -> None:
        """The outcome of a job's comparison."""
        values: dict[tuple[str, ...], float | None] = {}
        for row in evaluation.results:
            values[_EVALUATION, row.metric, "candidate"] = row.candidate
            values[_EVALUATION, row.metric, "baseline"] = row.baseline
            for bound, value in (("low", row.low), ("estimate", row.difference), ("high", row.high)):
                values[_DIFFERENCE, row.metric, bound] = value
        self._evaluations.show(key, values)

    def forget(self, *, key: Key) -> None:
        """The job is gone."""
        for each in (self.phases, self.waits, self._training, self._evaluations):
            each.forget(key)

    def forget_all(self) -> None:
        """This process does not lead any more: what jobs do is another's to show."""
        for key in {*self.phases.keys, *self._training.keys, *self._evaluations.keys}:
            self.forget(key=key)


def _waits_for(status: FineTuneJobStatus) -> str | None:
    """Whom or what the job waits for, rather than for its own work."""
    if status.phase in _PEOPLE:
        return "person"
    reconciling = status.condition("Reconciling")
    return _WAITS.get(reconciling.reason) if reconciling is not None and reconciling.status == "True" else None


def _failure(status: FineTuneJobStatus) -> str:
    stalled = status.condition("Stalled")
    return stalled.reason if stalled is not None and stalled.reason in set(Cause) else OTHER_REASON


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
