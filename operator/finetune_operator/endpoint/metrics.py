"""Prometheus metrics of endpoints: what serves, what is tried, and what came of it."""

from __future__ import annotations

from collections.abc import Hashable

from prometheus_client import CollectorRegistry, Counter, Gauge

from finetune_api.modelendpoint import EndpointPhase, ModelEndpointStatus, Outcome
from finetune_api.shared_fields import Verdict
from finetune_operator.core.metrics import PhaseGauge, labels_of
from finetune_operator.core.ports import Key


class EndpointMetrics:
    """Gauges of what is now; counters of what has ended since this process leads."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        one = ["namespace", "name"]
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
        self._weight = Gauge(
            "finetune_canary_weight_percent", "Share of requests that the candidate answers.", one, registry=registry
        )
        self._samples = Gauge(
            "finetune_rollout_samples", "Samples of the current step, of the metric that has fewest.", one,
            registry=registry,
        )  # fmt: skip
        self._available = Gauge(
            "finetune_endpoint_available", "1 while gateways and the stable version answer.", one, registry=registry
        )
        self._proven = Gauge(
            "finetune_endpoint_proven", "1 while the stable version is proven, 0 while it is not.", one,
            registry=registry,
        )  # fmt: skip
        self._epoch = Gauge("finetune_routes_epoch", "Epoch of the routes.", one, registry=registry)
        for outcome in labels_of(Outcome):
            self.outcomes.labels(outcome)
        for verdict in labels_of(Verdict):
            self.comparisons.labels(verdict)

    def show(self, *, key: Key, status: ModelEndpointStatus) -> None:
        """The endpoint is like this now."""
        self.phases.show(key, status.phase or "Empty")
        names = key.namespace, key.name
        step = status.step
        live = step is not None and step.stage in ("Canary", "Approval")
        self._weight.labels(*names).set((step.percent or 0.0) if live and step is not None else 0.0)
        self._samples.labels(*names).set(step.samples if step is not None else 0)
        available = any(each.type == "Available" and each.status == "True" for each in status.conditions)
        self._available.labels(*names).set(1 if available else 0)
        proven = status.stable.proven if status.stable is not None else None
        if proven is None:
            self._proven.remove(*names)
        else:
            self._proven.labels(*names).set(1 if proven else 0)
        self._epoch.labels(*names).set(status.routes.epoch if status.routes else 0)
        self._count(key=key, status=status)

    def forget(self, *, key: Key) -> None:
        """The endpoint is gone, or another process shows it."""
        self._counted.pop(key, None)
        if self.phases.forget(key):
            for gauge in (self._weight, self._samples, self._available, self._proven, self._epoch):
                gauge.remove(key.namespace, key.name)

    def forget_all(self) -> None:
        """This process does not lead any more."""
        for key in self.phases.keys:
            self.forget(key=key)

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
