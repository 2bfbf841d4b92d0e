"""Requests under way: counted as slow or overdue while they still run, so that a hang is seen at once.

What is counted is the first attempt of each request, at the version that its user was given: whether another one has
then answered says nothing about either of them. All versions of a rule are measured by the same limits.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from finetune_gateway.client_stream import Waits
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.tally import Arm, ArmKey, Tally, User

SWEEP_SECONDS = 0.25
_NO_BETTER = 0.5
"""Where as many requests fail at the fallback, one that is overdue would only begin anew there."""


@dataclass(kw_only=True, eq=False)
class Flight:
    """One attempt to have a request answered by one variant."""

    key: ArmKey
    arm: Arm
    counted: bool
    """False for users beyond their weight cap, and for a further attempt of the same request."""
    stands_for_user: bool
    """The first request of its user in this comparison. Of what users do wrong each of them has one voice: one whose
    requests are all wrong is one user, whichever version he was given."""
    began: float
    overdue_seconds: float | None
    """After how long without a first byte the attempt has failed, by the routes it began under: a request that hangs
    is not left alone with its version when the routes change. None: it has as long as any request."""
    elsewhere: bool
    """Whether another version can be asked instead."""
    waits: Waits = field(default_factory=Waits)
    """For its client, while that takes the answer."""
    upstream: asyncio.Task[object] | None = None
    """The wait for the first byte, cancelled when the variant is left."""
    seen: bool = False
    """It is among its arm's requests."""
    slow: bool = False
    given_up: Literal["overdue", "unreachable", "breaker"] | None = None
    """Overdue, unreachable: it counts as failed, whatever comes of it. Breaker: its wait ended because the variant was
    left; kept here, since routes that come meanwhile close the breaker."""

    def seconds(self, *, now: float) -> float:
        """How long the version has taken so far. A client that does not read what is there says nothing about it."""
        return now - self.began - self.waits.seconds(now=now)

    def count(self) -> None:
        """Count the request, once."""
        if self.counted and not self.seen:
            self.seen = True
            self.arm.requests += 1

    def count_slow(self) -> None:
        """Count a request that is over the limit already, once."""
        if self.counted and not self.slow:
            self.slow = True
            self.count()
            self.arm.slow += 1

    def settle(self, *, seconds: float, failed: bool, refused: bool = False) -> None:
        """Count what has become of a request."""
        self.count()
        if self.counted:
            self.arm.errors += failed
            self.arm.latency_sum_seconds += seconds
        if self.stands_for_user:
            self.arm.clients += 1
            self.arm.client_errors += refused


@dataclass(kw_only=True)
class Flights:
    """All attempts under way."""

    live: LiveRoutes
    tally: Tally
    under_way: set[Flight] = field(default_factory=set)

    def begin(self, *, key: ArmKey, user: User, cap: int, first: bool = True, elsewhere: bool = False) -> Flight:
        """Start an attempt; `first`: of its request."""
        arm = self.tally.arm(key)
        now, counted, is_voice = time.monotonic(), False, False
        if first:
            since = self.live.compared_since
            counted, is_voice = self.tally.weigh(since=since, variant=key[2], user=user, cap=cap, now=now)
        flight = Flight(
            key=key,
            arm=arm,
            counted=counted,
            stands_for_user=is_voice,
            began=now,
            overdue_seconds=self.live.overdue_seconds(key[1], key[2]),
            elsewhere=elsewhere,
        )
        arm.capped += first and not flight.counted
        self.under_way.add(flight)
        self.tally.in_flight[key[2]] = self.tally.in_flight.get(key[2], 0) + 1
        return flight

    def end(self, flight: Flight, *, failed: bool, what: str = "", judged: bool = True, refused: bool = False) -> None:
        """Finish an attempt. `judged` is False where the client went away: that says nothing about the variant."""
        self.under_way.discard(flight)
        self.tally.in_flight[flight.key[2]] -= 1
        if not judged or flight.given_up in ("overdue", "unreachable"):  # counted when it became so
            return
        seconds = flight.seconds(now=time.monotonic())
        routes = self.live.current
        limit = routes.judging.latency_limit_seconds if routes is not None else None
        if limit is not None and seconds > limit:
            flight.count_slow()
        flight.settle(seconds=seconds, failed=failed, refused=refused)
        epoch, rule, variant = flight.key
        self.live.record(epoch=epoch, rule=rule, variant=variant, failed=failed, what=what)

    def give_up(self, flight: Flight, why: Literal["overdue", "unreachable"], *, what: str) -> None:
        """Count as failed, once, what may still be answered."""
        if flight.given_up is None:
            flight.given_up = why
            flight.settle(seconds=flight.seconds(now=time.monotonic()), failed=True)
            epoch, rule, variant = flight.key
            self.live.record(epoch=epoch, rule=rule, variant=variant, failed=True, what=what)

    async def sweep(self) -> None:
        """Watch what is under way. Runs until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep_once(now=time.monotonic())

    def sweep_once(self, *, now: float) -> None:
        """Count what is slow or overdue, and wake requests that wait for too long or for a variant that was left, where
        another one can be asked."""
        routes = self.live.current
        limit = routes.judging.latency_limit_seconds if routes is not None else None
        for flight in list(self.under_way):
            _, rule, variant = flight.key
            age = flight.seconds(now=now)
            if limit is not None and age > limit and flight.given_up is None:
                flight.count_slow()
            if flight.upstream is None or flight.upstream.done():
                continue
            overdue = flight.overdue_seconds
            if flight.given_up is None and overdue is not None and age > overdue:
                self.give_up(flight, "overdue", what=f"no answer within {overdue:g} s")
            no_better = self.live.failing_elsewhere(rule) >= _NO_BETTER  # now: the fallback may have been away a moment
            if flight.given_up == "overdue" and flight.elsewhere and not no_better:
                flight.upstream.cancel()  # its client is answered by the fallback
            elif flight.elsewhere and self.live.is_open(rule, variant):
                flight.given_up = flight.given_up or "breaker"
                flight.upstream.cancel()
