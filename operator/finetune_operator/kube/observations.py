"""What gateways reported last (ports.ObservationSource): a cache that may be lost at any time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta

from finetune_api.observations import Observations
from finetune_operator.ports import Clock, Enqueue, Key, Report

_SOURCES = 200
"""Starts of gateways that are kept for an endpoint; beyond that, the one that reported longest ago is forgotten."""
_PRESENT = timedelta(seconds=5)
"""A gateway that has said nothing for so long, of one report a second, is nowhere to send anything to."""
_COUNTS_SECONDS = 1.0
"""Counts put an endpoint under analysis on the queue at most this often. Acknowledgements and breakers do at once."""


@dataclass(kw_only=True)
class _Endpoint:
    reports: OrderedDict[tuple[str, str], Report] = field(default_factory=OrderedDict)
    counts_matter: bool = True
    looked_at: float = float("-inf")
    due: asyncio.TimerHandle | None = None


class ObservationInbox:
    """The newest report of each start of each gateway."""

    def __init__(self, *, enqueue: Enqueue, clock: Clock) -> None:
        self._enqueue = enqueue
        self._clock = clock
        self._endpoints: dict[tuple[str, str], _Endpoint] = {}

    def report(self, *, namespace: str, observations: Observations) -> None:
        """Take a report in. Call from the event loop."""
        endpoint = self._endpoints.setdefault((namespace, observations.endpoint), _Endpoint())
        source = observations.gateway, observations.boot_id
        before = endpoint.reports.get(source)
        endpoint.reports[source] = Report(observations=observations, received=self._clock())
        endpoint.reports.move_to_end(source)
        if len(endpoint.reports) > _SOURCES:
            endpoint.reports.popitem(last=False)
        key = Key(kind="ModelEndpoint", namespace=namespace, name=observations.endpoint)
        if before is None or _urgent(before.observations, observations):
            self._enqueue(key)
        elif endpoint.counts_matter and endpoint.due is None:
            loop = asyncio.get_running_loop()
            wait = max(0.0, endpoint.looked_at + _COUNTS_SECONDS - loop.time())
            endpoint.due = loop.call_later(wait, self._look, key, endpoint)

    def reports(self, *, namespace: str, endpoint: str) -> tuple[Report, ...]:
        """The newest report of each start of each gateway of an endpoint."""
        known = self._endpoints.get((namespace, endpoint))
        return tuple(known.reports.values()) if known is not None else ()

    def peers(self, *, namespace: str, of: Observations) -> dict[str, str]:
        """Addresses of the other gateways of the endpoint that report now, by name."""
        since = self._clock() - _PRESENT
        return {
            report.observations.gateway: report.observations.address
            for report in self.reports(namespace=namespace, endpoint=of.endpoint)  # the newest last
            if report.received >= since and report.observations.gateway != of.gateway and report.observations.address
        }

    def counts_matter(self, *, namespace: str, endpoint: str, matter: bool) -> None:
        """Whether counts alone are worth a look: while something is under analysis."""
        self._endpoints.setdefault((namespace, endpoint), _Endpoint()).counts_matter = matter

    def forget(self, *, namespace: str, endpoint: str) -> None:
        """Drop what was reported: the endpoint is gone."""
        known = self._endpoints.pop((namespace, endpoint), None)
        if known is not None and known.due is not None:
            known.due.cancel()

    def _look(self, key: Key, endpoint: _Endpoint) -> None:
        endpoint.due = None
        endpoint.looked_at = asyncio.get_running_loop().time()
        self._enqueue(key)


def _urgent(before: Observations, now: Observations) -> bool:
    return (
        now.acknowledged_epoch != before.acknowledged_epoch
        or len(now.breakers) != len(before.breakers)
        or now.draining.keys() != before.draining.keys()
    )
