"""What the metrics of all kinds share.

Counters with a closed set of labels start at zero, so that the first increase is seen. `namespace` and `name` label
gauges of the current state only, which go away with what they describe.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Gauge, Histogram

from finetune_operator.core.ports import Key

DAYS_BUCKETS = tuple(
    timedelta(**each).total_seconds()
    for each in (
        {"seconds": 1}, {"seconds": 10}, {"minutes": 1}, {"minutes": 5}, {"minutes": 15}, {"hours": 1}, {"hours": 3},
        {"hours": 6}, {"hours": 12}, {"days": 1}, {"days": 2}, {"days": 4}, {"days": 7}, {"days": 14},
    )
)  # fmt: skip
"""Of what people, queues and training take."""


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


class ObjectGauges:
    """Gauges of single objects. What is not shown any more goes away, and all of it with its object."""

    def __init__(self, *, registry: CollectorRegistry, most: int | None = None) -> None:
        self._registry = registry
        self._most = most
        self._gauges: dict[str, Gauge] = {}
        self._shown: dict[Key, frozenset[tuple[str, ...]]] = {}

    def add(self, name: str, text: str, *labels: str) -> None:
        """A gauge with these labels beside the object's namespace and name."""
        self._gauges[name] = Gauge(name, text, ["namespace", "name", *labels], registry=self._registry)

    @property
    def keys(self) -> frozenset[Key]:
        """The objects that are shown."""
        return frozenset(self._shown)

    def __contains__(self, key: Key) -> bool:
        """Whether something of the object is shown."""
        return key in self._shown

    @property
    def full(self) -> bool:
        """Whether a further object would take the place of the one that is shown longest."""
        return self._most is not None and len(self._shown) >= self._most

    def show(self, key: Key, values: Mapping[tuple[str, ...], float | None]) -> None:
        """All that is known of the object: (gauge, *labels) -> value, None: not known."""
        known = {series: value for series, value in values.items() if value is not None}
        for name, *labels in self._shown.get(key, frozenset()) - known.keys():
            self._gauges[name].remove(key.namespace, key.name, *labels)
        for (name, *labels), value in known.items():
            self._gauges[name].labels(key.namespace, key.name, *labels).set(value)
        if known and key not in self._shown and self.full:
            self.forget(next(iter(self._shown)))
        self._shown[key] = frozenset(known)
        if not known:
            del self._shown[key]

    def forget(self, key: Key) -> None:
        """The object is gone, or another process shows it."""
        self.show(key, {})


class Waits:
    """Since when objects of a kind have been in their phase and waiting, and for whom; and how long those waited that
    do not any more. `for_whom`: all that can be waited for."""

    def __init__(self, kind: str, *, for_whom: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._phase, self._wait = (f"finetune_{kind}_{what}_start_timestamp_seconds" for what in ("phase", "wait"))
        self._gauges = ObjectGauges(registry=registry)
        self._gauges.add(self._phase, f"When the {kind} came into its phase.", "phase")
        self._gauges.add(self._wait, f"When the {kind} began to wait, while it does.", "waits_for")
        self._seconds = Histogram(
            f"finetune_{kind}_wait_duration_seconds",
            "Waits that are over, by what was waited for; all other time is work.",
            ["waits_for"],
            buckets=DAYS_BUCKETS,
            registry=registry,
        )
        self._known: dict[Key, tuple[str, datetime, str | None, datetime]] = {}
        for whom in for_whom:
            self._seconds.labels(whom)

    def show(self, key: Key, *, phase: str, waits_for: str | None, since: datetime | None, now: datetime) -> None:
        """`since`: when it came into the phase, None: not known."""
        known = self._known.get(key, ("", now, None, now))
        entered = known[1] if known[0] == phase else min(since or now, now)
        began = known[3]
        if waits_for != known[2]:
            if known[2] is not None:
                self._seconds.labels(known[2]).observe(max(0.0, (now - began).total_seconds()))
            began = now if known[0] == phase else entered
        self._known[key] = phase, entered, waits_for, began
        shown: dict[tuple[str, ...], float | None] = {(self._phase, phase): entered.timestamp()}
        if waits_for is not None:
            shown[self._wait, waits_for] = began.timestamp()
        self._gauges.show(key, shown)

    def forget(self, key: Key) -> None:
        """The object has ended, is gone, or another process shows it."""
        self._known.pop(key, None)
        self._gauges.forget(key)
