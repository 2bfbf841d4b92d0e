"""What the gateways have reported, as the operator took it in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.observations import BreakerTrip
from finetune_operator.core.ports import Report

FRESH_SECONDS = 15.0
"""A gateway reports every second; one that was silent for this long is not counted on."""


def source_of(report: Report) -> str:
    """One start of one gateway: its counters begin at zero."""
    return f"{report.observations.gateway}/{report.observations.boot_id}"


@dataclass(frozen=True, kw_only=True)
class Gateways:
    """The gateways that exist, and what each said last. `names`: their pods, those that are ending included."""

    names: tuple[str, ...]
    reports: tuple[Report, ...]
    now: datetime

    def newest(self) -> dict[str, Report]:
        """The newest report of each gateway that exists."""
        newest: dict[str, Report] = {}
        for report in sorted(self.reports, key=lambda report: report.received):
            if report.observations.gateway in self.names:
                newest[report.observations.gateway] = report
        return newest

    def is_gone(self, source: str) -> bool:
        """Whether this start of a gateway has ended: its pod is gone, or reports as started again."""
        gateway = source.partition("/")[0]
        newest = self.newest().get(gateway)
        return gateway not in self.names or (newest is not None and source_of(newest) != source)

    def is_over(self, source: str) -> bool:
        """Whether this start of a gateway has ended, and nothing was heard of it lately: a pod that has just started
        may report before it is seen."""
        horizon = self.now - timedelta(seconds=FRESH_SECONDS)
        lately = any(source_of(report) == source and report.received >= horizon for report in self.reports)
        return not lately and self.is_gone(source)

    def without(self, sources: Collection[str]) -> Gateways:
        """The same without the reports of these starts."""
        return replace(self, reports=tuple(each for each in self.reports if source_of(each) not in sources))

    def acknowledged(self, epoch: int) -> int:
        """How many gateways serve this epoch (or a newer one)."""
        return sum(report.observations.acknowledged_epoch >= epoch for report in self.newest().values())

    @property
    def furthest(self) -> int:
        """The newest epoch that any of them serves; 0: none has said."""
        return max((report.observations.acknowledged_epoch for report in self.newest().values()), default=0)

    def all_acknowledge(self, epoch: int) -> bool:
        """Whether no gateway may still send requests by older routes. Without gateways nobody does."""
        return self.acknowledged(epoch) == len(self.names)

    def in_flight(self, variant: str) -> int:
        """Requests to a variant that are not answered yet, as far as the gateways have said."""
        return sum(report.observations.draining.get(variant, 0) for report in self.newest().values())

    def trips(self, *, variants: Iterable[str], since_epoch: int) -> Iterator[BreakerTrip]:
        """The times that a gateway left one of these variants by itself, by gateways that are gone too."""
        wanted = set(variants)
        for report in self.reports:
            for trip in report.observations.breakers:
                if trip.variant in wanted and trip.epoch >= since_epoch:
                    yield trip

    @property
    def silent(self) -> tuple[str, ...]:
        """Gateways that have not reported lately."""
        newest, horizon = self.newest(), self.now - timedelta(seconds=FRESH_SECONDS)
        return tuple(name for name in self.names if name not in newest or newest[name].received < horizon)
