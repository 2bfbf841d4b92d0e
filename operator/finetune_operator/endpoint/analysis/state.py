"""The state of the live statistics of one part of a rollout, and the document that it is kept as.

The document is stored in a ConfigMap of the endpoint: ledgers and tests are written together, so an operator that
restarts neither forgets nor counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.modelendpoint import LiveMetric
from finetune_stats.betting import BoundedMeanState, bounded_mean_from_dict
from finetune_stats.distributions import beta_quantile
from finetune_stats.edetector import DetectorState, detector_from_dict
from finetune_stats.eprocess import TwoRateState, two_rate_from_dict
from finetune_stats.ledger import Ledger, ledger_from_dict

STATE_VERSION = 2
_REFERENCE_CONFIDENCE = 0.995
Part = Literal["Shadow", "Canary", "Guard"]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is compared: the requests of these epochs, rules and variants."""

    part: Part
    key: str
    """Names the part of the rollout: another key begins anew."""
    candidate: str
    stable: str | None
    rules: tuple[str, ...]
    """Rules under which clients' requests go to the candidate."""
    since_epoch: int
    metrics: tuple[LiveMetric, ...]
    alpha: Mapping[str, float]
    """Share of each metric."""
    guard_seconds: float = 0.0
    reference: Mapping[str, float] = field(default_factory=dict)
    """For guard: the stable version's rate of each metric, frozen before the promotion."""


@dataclass(frozen=True, kw_only=True)
class MetricState:
    """The tests of one metric. Those that the part does not use stay None."""

    pairs: tuple[tuple[str, BoundedMeanState], ...] = ()
    """By source. Copies of requests and held-out prompts are judged each on its own: what only one of them can show
    would be lost among the other's."""
    arms: tuple[tuple[str, TwoRateState], ...] = ()
    """By rule."""
    rate: DetectorState | None = None
    two_rates: DetectorState | None = None
    paired: DetectorState | None = None


@dataclass(frozen=True, kw_only=True)
class AnalysisState:
    """All that was counted and concluded since the part began."""

    key: str
    pair_ledgers: tuple[tuple[str, Ledger], ...] = ()
    """By metric and source: pairs, bad with the candidate only, bad with stable only."""
    arm_ledgers: tuple[tuple[str, Ledger], ...] = ()
    """By rule and variant: requests, errors, slow, bad; and clients, client errors."""
    epochs: tuple[tuple[str, Ledger], ...] = ()
    """By what is counted: how far each start of a gateway has counted in each epoch, where there are several."""
    ended: tuple[str, ...] = ()
    """Starts of gateways whose counts are one sum in each ledger: what is still reported of them is in it."""
    probe_gateway: str | None = None
    """The one whose probes count: all gateways send the same prompts."""
    metrics: tuple[tuple[str, MetricState], ...] = ()
    clock: float = 0.0
    """Seconds of the guard window that the detectors have seen."""
    rates: tuple[tuple[str, float, float], ...] = ()
    """Of stable, over the rollout so far: metric, bad, requests."""

    def metric(self, name: str) -> MetricState:
        """The tests of a metric."""
        return dict(self.metrics).get(name, MetricState())

    def reference(self) -> dict[str, float]:
        """What stable's rate of each metric is at most, where it was measured on at least 20 requests.

        An upper bound (Clopper and Pearson 1934), not the rate that was seen: against a rate that happened to be low
        every version is worse, the same one too.
        """
        return {
            name: beta_quantile(_REFERENCE_CONFIDENCE, bad + 1, total - bad) if bad < total else 1.0
            for name, bad, total in self.rates
            if total >= 20
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "version": STATE_VERSION,
            "key": self.key,
            "pairLedgers": {name: ledger.to_dict() for name, ledger in self.pair_ledgers},
            "armLedgers": {name: ledger.to_dict() for name, ledger in self.arm_ledgers},
            "epochs": {name: ledger.to_dict() for name, ledger in self.epochs},
            "ended": list(self.ended),
            "probeGateway": self.probe_gateway,
            "clock": self.clock,
            "rates": [list(each) for each in self.rates],
            "metrics": {name: _metric_document(state) for name, state in self.metrics},
        }


def state_from_dict(document: Mapping[str, Any]) -> AnalysisState:
    """Read back `AnalysisState.to_dict`. Raises ValueError for another version or a malformed document."""
    if document.get("version") != STATE_VERSION:
        raise ValueError(f"the analysis has version {document.get('version')}; this operator reads {STATE_VERSION}")
    try:
        return AnalysisState(
            key=str(document["key"]),
            pair_ledgers=_ledgers(document["pairLedgers"]),
            arm_ledgers=_ledgers(document["armLedgers"]),
            epochs=_ledgers(document.get("epochs", {})),
            ended=tuple(map(str, document.get("ended", ()))),
            probe_gateway=document["probeGateway"],
            clock=float(document["clock"]),
            rates=tuple((str(name), float(bad), float(total)) for name, bad, total in document["rates"]),
            metrics=tuple((name, _metric_from(each)) for name, each in sorted(document["metrics"].items())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the analysis cannot be read: {error!r}") from error


def _metric_document(state: MetricState) -> dict[str, Any]:
    document: dict[str, Any] = {
        "arms": {rule: arms.to_dict() for rule, arms in state.arms},
        "pairs": {source: pairs.to_dict() for source, pairs in state.pairs},
    }
    for name in ("rate", "two_rates", "paired"):
        test = getattr(state, name)
        if test is not None:
            document[name] = test.to_dict()
    return document


def _metric_from(document: Mapping[str, Any]) -> MetricState:
    def detector(name: str) -> DetectorState | None:
        return detector_from_dict(document[name]) if name in document else None

    return MetricState(
        pairs=tuple((source, bounded_mean_from_dict(each)) for source, each in sorted(document["pairs"].items())),
        arms=tuple((rule, two_rate_from_dict(each)) for rule, each in sorted(document["arms"].items())),
        rate=detector("rate"),
        two_rates=detector("two_rates"),
        paired=detector("paired"),
    )


def _ledgers(document: Mapping[str, Any]) -> tuple[tuple[str, Ledger], ...]:
    return tuple((name, ledger_from_dict(each)) for name, each in sorted(document.items()))
