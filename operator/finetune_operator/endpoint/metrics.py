"""Prometheus metrics of endpoints: what serves, what is tried, and what came of it."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram

from finetune_api.modelendpoint import EndpointPhase, ModelEndpointStatus, Outcome, StepStatus
from finetune_api.shared_fields import Verdict
from finetune_operator.core.metrics import ObjectGauges, PhaseGauge, Waits, labels_of
from finetune_operator.core.ports import Key

_WEIGHT = "finetune_canary_weight_ratio"
_SAMPLES = "finetune_rollout_samples"
_NEEDED = "finetune_rollout_samples_needed"
_AVAILABLE = "finetune_endpoint_available"
_PROVEN = "finetune_endpoint_proven"
_EPOCH = "finetune_routes_epoch"
_STEP = "finetune_rollout_step_start_timestamp_seconds"
_OUTCOME = "finetune_endpoint_last_outcome_timestamp_seconds"
_METRIC = "finetune_rollout_metric"
_DIFFERENCE = "finetune_rollout_difference"
_METRIC_SAMPLES = "finetune_rollout_metric_samples"
_GAUGES: dict[str, tuple[str, ...]] = {
    _WEIGHT: ("Share of requests that the candidate answers.",),
    _SAMPLES: ("Samples of the current step, of the metric that has fewest.",),
    _NEEDED: ("Samples of each metric before the candidate may go on.",),
    _AVAILABLE: ("1 while gateways and the stable version answer.",),
    _PROVEN: ("1 while the stable version is proven, 0 while it is not.",),
    _EPOCH: ("Epoch of the routes.",),
    _STEP: ("When the rollout came to its step.", "stage", "step"),
    _OUTCOME: ("When it was decided what became of the version that was tried last.", "outcome"),
    _METRIC: ("Rate of bad answers in the current step.", "metric", "role"),
    _DIFFERENCE: ("Always-valid bounds of candidate less baseline in the current step.", "metric", "bound"),
    _METRIC_SAMPLES: ("Samples of the current step, by metric.", "metric"),
}
_DETECTION_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600)
_ROLLBACK_BUCKETS = (1, 2, 3, 5, 10, 20, 30, 60, 120, 300)
_PEOPLE = frozenset({"AwaitingApproval", "Paused"})


class EndpointMetrics:
    """Gauges of what is now; counters of what has ended since this process leads."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        self._counted: dict[Key, frozenset[Hashable]] = {}
        """What the status recorded at the last look: its lists are bounded, so their lengths tell nothing."""
        self.phases = PhaseGauge(
            "finetune_endpoints", "ModelEndpoints by phase.", phases=EndpointPhase, registry=registry
        )
        self.outcomes = Counter(
            "finetune_rollouts_total", "Versions by what became of them.", ["outcome"], registry=registry
        )
        self.comparisons = Counter(
            "finetune_comparisons_total",
            "Comparisons of a version with what had become stable since, by verdict.",
            ["verdict"],
            registry=registry,
        )
        self.detection = Histogram(
            "finetune_regression_detection_seconds",
            "From the beginning of a rollout's step to the operator's decision to roll back.",
            buckets=_DETECTION_BUCKETS,
            registry=registry,
        )
        self.rollback = Histogram(
            "finetune_rollback_duration_seconds",
            "From the decision to roll back until all gateways had left the version.",
            buckets=_ROLLBACK_BUCKETS,
            registry=registry,
        )
        self.waits = Waits("endpoint", for_whom=("person",), registry=registry)
        self._steps: dict[Key, StepStatus] = {}
        self._gauges = ObjectGauges(registry=registry)
        for name, (text, *labels) in _GAUGES.items():
            self._gauges.add(name, text, *labels)
        for outcome in labels_of(Outcome):
            self.outcomes.labels(outcome)
        for verdict in labels_of(Verdict):
            self.comparisons.labels(verdict)

    def show(self, *, key: Key, status: ModelEndpointStatus, now: datetime) -> None:
        """The endpoint is like this now."""
        phase, step = status.phase or "Empty", status.step
        self.phases.show(key, phase)
        waits_for = "person" if phase in _PEOPLE or status.held is not None else None
        since = step.start_time if step is not None else None
        self.waits.show(key, phase=phase, waits_for=waits_for, since=since, now=now)
        self._gauges.show(key, _values(status))
        self._time(key=key, status=status, now=now)
        self._count(key=key, status=status)

    def forget(self, *, key: Key) -> None:
        """The endpoint is gone, or another process shows it."""
        self._counted.pop(key, None)
        self._steps.pop(key, None)
        for each in (self.phases, self.waits, self._gauges):
            each.forget(key)

    def forget_all(self) -> None:
        """This process does not lead any more."""
        for key in self.phases.keys:
            self.forget(key=key)

    def _time(self, *, key: Key, status: ModelEndpointStatus, now: datetime) -> None:
        """How long it took to see a regression, and to leave the version."""
        before, step = self._steps.pop(key, None), status.step
        if step is not None:
            self._steps[key] = step
        if before is None or (step is not None and step.stage == before.stage):
            return
        if before.stage == "RollingBack":
            self.rollback.observe(max(0.0, (now - before.start_time).total_seconds()))
        elif step is not None and step.stage == "RollingBack" and _last_by(status) == "operator":
            self.detection.observe(max(0.0, (step.start_time - before.start_time).total_seconds()))

    def _count(self, *, key: Key, status: ModelEndpointStatus) -> None:
        """What was recorded since the last look; what was before this process led is not counted again."""
        found: dict[Hashable, tuple[Counter, str]] = {}
        for ended in status.versions:
            found[ended.uid, ended.time, ended.outcome] = self.outcomes, ended.outcome
        for compared in status.comparisons:
            record = compared.version.uid, compared.baseline.digest, compared.time
            found[record] = self.comparisons, compared.verdict
        known = self._counted.get(key, found.keys())
        for new in found.keys() - known:
            counter, label = found[new]
            counter.labels(label).inc()
        self._counted[key] = frozenset(found)


def _last_by(status: ModelEndpointStatus) -> str | None:
    """Who decided last about a version."""
    return status.versions[-1].by if status.versions else None


def _values(status: ModelEndpointStatus) -> dict[tuple[str, ...], float | None]:
    step, last = status.step, status.versions[-1] if status.versions else None
    live = step is not None and step.stage in ("Canary", "Approval")
    values: dict[tuple[str, ...], float | None] = {
        (_WEIGHT,): (step.percent or 0.0) / 100 if live and step is not None else 0.0,
        (_SAMPLES,): step.samples if step is not None else 0,
        (_NEEDED,): step.needed if step is not None else 0,
        (_AVAILABLE,): any(each.type == "Available" and each.status == "True" for each in status.conditions),
        (_PROVEN,): status.stable.proven if status.stable is not None else None,
        (_EPOCH,): status.routes.epoch if status.routes else 0,
    }
    if step is not None:
        values[_STEP, step.stage, step.name] = step.start_time.timestamp()
    if last is not None:
        values[_OUTCOME, last.outcome] = last.time.timestamp()
    for row in status.analysis:
        values[_METRIC, row.metric, "candidate"] = row.candidate
        values[_METRIC, row.metric, "baseline"] = row.baseline
        values[_DIFFERENCE, row.metric, "low"] = row.low
        values[_DIFFERENCE, row.metric, "high"] = row.high
        values[_METRIC_SAMPLES, row.metric] = row.samples
    return values
