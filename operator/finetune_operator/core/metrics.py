"""What the metrics of all kinds share.

Counters with a closed set of labels start at zero, so that the first increase is seen. `namespace` and `name` label
gauges of the current state only, which go away with what they describe.
"""

from __future__ import annotations

from typing import Any, get_args

from prometheus_client import CollectorRegistry, Gauge

from finetune_operator.core.ports import Key


class PhaseGauge:
    """How many objects of a kind are in each phase. `phases`: a Literal of all of them."""

    def __init__(self, name: str, text: str, *, phases: Any, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(name, text, ["phase"], registry=registry)
        self._phases: dict[Key, str] = {}
        for phase in labels_of(phases):
            self._gauge.labels(phase)

    @property
    def keys(self) -> frozenset[Key]:
        """The objects that are counted."""
        return frozenset(self._phases)

    def show(self, key: Key, phase: str) -> None:
        """The object is in this phase."""
        if self._phases.get(key) != phase:
            self.forget(key)
            self._phases[key] = phase
            self._gauge.labels(phase).inc()

    def forget(self, key: Key) -> bool:
        """The object is gone, or another process shows it. Whether it was counted."""
        before = self._phases.pop(key, None)
        if before is not None:
            self._gauge.labels(before).dec()
        return before is not None


def labels_of(literal: Any) -> tuple[str, ...]:
    """The values of a Literal."""
    return get_args(literal)


def remove(gauge: Gauge, *labels: str) -> None:
    """Take a series away, if it was ever set."""
    try:
        gauge.remove(*labels)
    except KeyError:
        return
