"""What pods reported last, training pods (ports.ProgressSource) and gateways (ports.ObservationSource): caches that may
be lost at any time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from finetune_api.finetunejob import TrainerStatus
from finetune_api.observations import Observations
from finetune_api.progress import MINIMUM_INTERVAL_SECONDS
from finetune_operator.core.ports import Clock, Enqueue, Key, Progress, Report

_JOBS = 10_000
"""Jobs whose reports are kept; beyond that, the one that reported longest ago is forgotten."""
_SOURCES = 200
"""Starts of gateways that are kept for an endpoint; beyond that, the one that reported longest ago is forgotten."""
_PRESENT = timedelta(seconds=5)
"""A gateway that has said nothing for so long, of one report a second, is nowhere to send anything to."""
_COUNTS_SECONDS = 1.0
"""Counts put an endpoint under analysis on the queue at most this often. Acknowledgements and breakers do at once."""


@dataclass(kw_only=True)
class _Pace:
    """When an object was looked at last because of a report, and the look that is due: reports in between replace each
    other, and the last one is looked at when the interval is over."""

    looked_at: float = float("-inf")
    due: asyncio.TimerHandle | None = None

    def look(self, enqueue: Callable[[], None], *, interval: float) -> None:
        """Look as soon as the interval allows it. Call from the event loop."""
        if self.due is None:
            loop = asyncio.get_running_loop()
            wait = max(0.0, self.looked_at + interval - loop.time())
            self.due = loop.call_later(wait, self._look, enqueue)

    def cancel(self) -> None:
        """No look is due any more."""
        if self.due is not None:
            self.due.cancel()

    def _look(self, enqueue: Callable[[], None]) -> None:
        self.due = None
        self.looked_at = asyncio.get_running_loop().time()
        enqueue()


class ProgressInbox:
    """The newest report of each job, by the job's UID. A report puts its job on the queue, but no job more often than
    every MINIMUM_INTERVAL_SECONDS."""

    def __init__(self, *, enqueue: Enqueue, clock: Clock) -> None:
        self._enqueue = enqueue
        self._clock = clock
        self.listening_since = clock()
        self._latest: OrderedDict[str, Progress] = OrderedDict()
        self._paces: dict[str, _Pace] = {}

    def report(self, *, key: Key, uid: str, status: TrainerStatus) -> None:
        """Take a report in. Call from the event loop."""
        self._latest[uid] = Progress(status=status, received=self._clock())
        self._latest.move_to_end(uid)
        self._paces.setdefault(uid, _Pace()).look(lambda: self._enqueue(key), interval=MINIMUM_INTERVAL_SECONDS)
        if len(self._latest) > _JOBS:
            self.forget(uid=next(iter(self._latest)))

    def latest(self, *, uid: str) -> Progress | None:
        """The newest report about a job, or None."""
        return self._latest.get(uid)

    def forget(self, *, uid: str) -> None:
        """Drop what was reported about a job so far."""
        self._latest.pop(uid, None)
        self._paces.pop(uid, _Pace()).cancel()


@dataclass(kw_only=True)
class _Endpoint:
    reports: OrderedDict[tuple[str, str], Report] = field(default_factory=OrderedDict)
    counts_matter: bool = True
    pace: _Pace = field(default_factory=_Pace)


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
        elif endpoint.counts_matter:
            endpoint.pace.look(lambda: self._enqueue(key), interval=_COUNTS_SECONDS)

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
        self._endpoints.pop((namespace, endpoint), _Endpoint()).pace.cancel()


def _urgent(before: Observations, now: Observations) -> bool:
    return (
        now.acknowledged_epoch != before.acknowledged_epoch
        or len(now.breakers) != len(before.breakers)
        or now.draining.keys() != before.draining.keys()
    )
