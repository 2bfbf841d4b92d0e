"""Prometheus metrics of jobs: what runs, and what came of it."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_api.finetunejob import TERMINAL_PHASES, EvaluationStatus, FineTuneJobStatus, Phase, TrainerStatus
from finetune_api.progress import LEARNING_RATE, LOSS, MFU, STEP, TOKENS_PER_SECOND
from finetune_api.shared_fields import Verdict
from finetune_operator.attempts.restarts import Budget, Cause
from finetune_operator.core.metrics import PhaseGauge, labels_of, remove
from finetune_operator.core.ports import Key
from finetune_operator.job.decision import Restarted

EVALUATIONS_SHOWN = 500
"""Jobs whose evaluation is shown as gauges: the newest. ModelVersions keep all of them."""

_PHASE_BUCKETS = tuple(
    timedelta(**each).total_seconds()
    for each in (
        {"seconds": 1}, {"seconds": 10}, {"minutes": 1}, {"minutes": 5}, {"minutes": 15}, {"hours": 1}, {"hours": 3},
        {"hours": 6}, {"hours": 12}, {"days": 1}, {"days": 2}, {"days": 4}, {"days": 7}, {"days": 14},
    )
)  # fmt: skip
_TRAINING = {
    "step": (STEP, "Optimiser steps done."),
    "loss": (LOSS, "Training loss, as reported last."),
    "learning_rate": (LEARNING_RATE, "Learning rate, as reported last."),
    "tokens_per_second": (TOKENS_PER_SECOND, "Non-padding tokens per second and GPU (or CPU process)."),
    "mfu_ratio": (MFU, "Share of the GPU's arithmetic peak that training uses."),
}


class JobMetrics:
    """Gauges of what is now; counters of what has ended since this process leads."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        one_job = ["namespace", "name"]
        self._trained: set[Key] = set()
        self._evaluated: dict[Key, tuple[str, ...]] = {}
        self.phases = PhaseGauge("finetune_jobs", "FineTuneJobs by phase.", phases=Phase, registry=registry)
        self.phase_seconds = Histogram(
            "finetune_job_phase_duration_seconds",
            "How long jobs were in a phase that they have left.",
            ["phase"],
            buckets=_PHASE_BUCKETS,
            registry=registry,
        )
        self.restarts = Counter("finetune_restarts_total", "New attempts, by cause.", ["reason"], registry=registry)
        self.preemptions = Counter("finetune_preemptions_total", "New attempts after interruptions.", registry=registry)
        self.steps_lost = Counter("finetune_steps_lost_total", "Optimiser steps done again.", registry=registry)
        self.verdicts = Counter(
            "finetune_eval_verdicts_total", "Evaluations, by verdict.", ["verdict"], registry=registry
        )
        self.finished = Counter(
            "finetune_jobs_finished_total", "Jobs that ended, by phase.", ["phase"], registry=registry
        )
        self._training = {
            name: Gauge(f"finetune_training_{name}", text, one_job, registry=registry)
            for name, (_, text) in _TRAINING.items()
        }
        self._progress = Gauge(
            "finetune_training_progress_ratio", "Share of the training done.", one_job, registry=registry
        )
        self._evaluation = Gauge(
            "finetune_eval_metric",
            f"Metrics of the evaluation, of the newest {EVALUATIONS_SHOWN} jobs.",
            [*one_job, "metric", "role"],
            registry=registry,
        )
        for counter, labels in (
            (self.finished, sorted(TERMINAL_PHASES)),
            (self.verdicts, labels_of(Verdict)),
            (self.restarts, tuple(Cause)),
        ):
            for label in labels:
                counter.labels(label)

    def show(
        self, *, key: Key, before: FineTuneJobStatus, status: FineTuneJobStatus, restarted: Restarted | None = None
    ) -> None:
        """The job is like this now, and was like that before."""
        phase = status.phase or "Pending"
        self.phases.show(key, phase)
        if phase == "Training" and status.trainer_status is not None:
            self.show_training(key=key, status=status.trainer_status)
        elif phase in TERMINAL_PHASES:
            self.hide_training(key=key)
        if restarted is not None:
            self.restarts.labels(restarted.cause).inc()
            self.steps_lost.inc(restarted.steps_lost)
            self.preemptions.inc(restarted.cause.budget is Budget.PREEMPTIONS)
        if before.phase is not None and before.phase != phase and before.phase_start_time and status.phase_start_time:
            seconds = (status.phase_start_time - before.phase_start_time).total_seconds()
            self.phase_seconds.labels(before.phase).observe(max(0.0, seconds))
        if phase in TERMINAL_PHASES and before.phase != phase:
            self.finished.labels(phase).inc()
        if status.evaluation is not None and before.evaluation is None:
            self.verdicts.labels(status.evaluation.verdict).inc()
            self.show_evaluation(key=key, evaluation=status.evaluation)

    def show_training(self, *, key: Key, status: TrainerStatus) -> None:
        """The newest progress of a job that trains."""
        self._trained.add(key)
        for name, (reported, _) in _TRAINING.items():
            value = _number(status.metric(reported))
            if value is not None:
                self._training[name].labels(key.namespace, key.name).set(value)
        if status.progress_percentage is not None:
            self._progress.labels(key.namespace, key.name).set(status.progress_percentage / 100)

    def hide_training(self, *, key: Key) -> None:
        """The job does not train any more."""
        if key in self._trained:
            self._trained.discard(key)
            for gauge in (*self._training.values(), self._progress):
                remove(gauge, key.namespace, key.name)

    def show_evaluation(self, *, key: Key, evaluation: EvaluationStatus) -> None:
        """The outcome of a job's comparison."""
        self._hide_evaluation(key)
        self._evaluated[key] = tuple(row.metric for row in evaluation.results)
        for row in evaluation.results:
            for role, value in (("candidate", row.candidate), ("baseline", row.baseline)):
                if value is not None:
                    self._evaluation.labels(key.namespace, key.name, row.metric, role).set(value)
        while len(self._evaluated) > EVALUATIONS_SHOWN:
            self._hide_evaluation(next(iter(self._evaluated)))

    def forget(self, *, key: Key) -> None:
        """The job is gone."""
        self.phases.forget(key)
        self.hide_training(key=key)
        self._hide_evaluation(key)

    def forget_all(self) -> None:
        """This process does not lead any more: what jobs do is another's to show."""
        for key in {*self.phases.keys, *self._trained, *self._evaluated}:
            self.forget(key=key)

    def _hide_evaluation(self, key: Key) -> None:
        for metric in self._evaluated.pop(key, ()):
            for role in ("candidate", "baseline"):
                remove(self._evaluation, key.namespace, key.name, metric, role)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
