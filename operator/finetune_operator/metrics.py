"""The operator's Prometheus metrics.

Counters with a closed set of labels start at zero, so that the first increase is seen. `namespace` and `name` label
gauges of the current state only, which go away with what they describe.
"""

from __future__ import annotations

import platform
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_api.finetunejob import TERMINAL_PHASES, EvaluationStatus, Phase, TrainerStatus
from finetune_api.progress import LEARNING_RATE, LOSS, MFU, STEP, TOKENS_PER_SECOND
from finetune_operator.endpoint_metrics import EndpointMetrics
from finetune_operator.job.restarts import Cause
from finetune_operator.ports import Key

PHASES: tuple[str, ...] = Phase.__args__  # type: ignore[attr-defined]
ERRORS = ("Unavailable", "Conflict", "Refused", "Internal")
VERDICTS = ("Pass", "Fail", "Inconclusive")
EVALUATIONS_SHOWN = 500
"""Jobs whose evaluation is shown as gauges: the newest. ModelVersions keep all of them."""

_SECOND_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
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


class Metrics:
    """All metrics of one operator process, in `registry`."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._phases: dict[Key, str] = {}
        self._trained: set[Key] = set()
        self._evaluated: dict[Key, tuple[str, ...]] = {}
        self._foreign: dict[Key, tuple[str, str]] = {}
        self.endpoints = EndpointMetrics(registry=registry)
        self._define_process_metrics()
        self._define_job_metrics()

    def _define_process_metrics(self) -> None:
        registry = self.registry
        build = Gauge("finetune_build_info", "The running version.", ["version", "python"], registry=registry)
        build.labels(_version(), platform.python_version()).set(1)
        self.leader = Gauge("finetune_leader", "1 while this process leads.", registry=registry)
        self.reconcile_seconds = Histogram(
            "finetune_reconcile_duration_seconds",
            "One look at one object.",
            ["kind"],
            buckets=_SECOND_BUCKETS,
            registry=registry,
        )
        self.reconcile_errors = Counter(
            "finetune_reconcile_errors_total", "Looks that ended early.", ["reason"], registry=registry
        )
        self.queue_depth = Gauge("finetune_workqueue_depth", "Objects that wait for a worker.", registry=registry)
        self.queue_wait_seconds = Histogram(
            "finetune_workqueue_wait_seconds", "From the event to a worker.", buckets=_SECOND_BUCKETS, registry=registry
        )
        self.queue_work_seconds = Histogram(
            "finetune_workqueue_work_seconds",
            "A worker's time on an object.",
            buckets=_SECOND_BUCKETS,
            registry=registry,
        )
        self.queue_retries = Counter("finetune_workqueue_retries_total", "Looks that are repeated.", registry=registry)
        self.foreign = Gauge(
            "finetune_foreign_instance_objects", "Objects met that are another operator's.", ["kind"], registry=registry
        )
        for reason in ERRORS:
            self.reconcile_errors.labels(reason)
        for kind in ("FineTuneJob", "ModelEndpoint"):
            self.reconcile_seconds.labels(kind)
            self.foreign.labels(kind)

    def _define_job_metrics(self) -> None:
        registry, one_job = self.registry, ["namespace", "name"]
        self.jobs = Gauge("finetune_jobs", "FineTuneJobs by phase.", ["phase"], registry=registry)
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
        for phase in PHASES:
            self.jobs.labels(phase)
        for phase in sorted(TERMINAL_PHASES):
            self.finished.labels(phase)
        for verdict in VERDICTS:
            self.verdicts.labels(verdict)
        for cause in Cause:
            self.restarts.labels(cause)

    # -- what is now ------------------------------------------------------------------------------------------------

    def show_phase(self, *, key: Key, phase: str) -> None:
        """The job is in this phase."""
        before = self._phases.get(key)
        if before != phase:
            self._phases[key] = phase
            self.jobs.labels(phase).inc()
            if before is not None:
                self.jobs.labels(before).dec()

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
                _remove(gauge, key.namespace, key.name)

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

    def show_foreign(self, *, key: Key, found: tuple[str, str] | None) -> bool:
        """UID and instance of an object that is another operator's; None: it is not, or gone. Whether that is news."""
        before = self._foreign.pop(key, None)
        if found is not None:
            self._foreign[key] = found
        self.foreign.labels(key.kind).inc((found is not None) - (before is not None))
        return found != before

    def forget(self, *, key: Key) -> None:
        """The object is gone."""
        before = self._phases.pop(key, None)
        if before is not None:
            self.jobs.labels(before).dec()
        self.hide_training(key=key)
        self._hide_evaluation(key)

    def forget_all(self) -> None:
        """This process does not lead any more: what jobs do is another's to show."""
        self.endpoints.forget_all()
        for key in {*self._phases, *self._trained, *self._evaluated}:
            self.forget(key=key)
        for key in list(self._foreign):
            self.show_foreign(key=key, found=None)

    def _hide_evaluation(self, key: Key) -> None:
        for metric in self._evaluated.pop(key, ()):
            for role in ("candidate", "baseline"):
                _remove(self._evaluation, key.namespace, key.name, metric, role)

    # -- workqueue.QueueObserver ------------------------------------------------------------------------------------

    def depth(self, count: int) -> None:
        """Keys that wait for a worker now."""
        self.queue_depth.set(count)

    def waited(self, seconds: float) -> None:
        """A key was taken from the queue after this long."""
        self.queue_wait_seconds.observe(seconds)

    def worked(self, seconds: float) -> None:
        """A handler ended after this long."""
        self.queue_work_seconds.observe(seconds)

    def retried(self) -> None:
        """A handler raised, and its key will be tried again."""
        self.queue_retries.inc()


def _remove(gauge: Gauge, *labels: str) -> None:
    try:
        gauge.remove(*labels)
    except KeyError:
        return  # it was never set


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _version() -> str:
    try:
        return version("finetune-operator")
    except PackageNotFoundError:
        return "unknown"
