"""Requests under way: counted as slow or overdue while they still run, so that a hang is seen at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.tally import Arm, ArmKey, Tally, User

SWEEP_SECONDS = 0.25


@dataclass(kw_only=True, eq=False)
class Flight:
    """One attempt to have a request answered by one variant."""

    key: ArmKey
    arm: Arm
    counted: bool
    """False for users beyond their weight cap."""
    began: float
    overdue_seconds: float | None
    """After how long without a first byte the attempt has failed, by the routes it began under: a request that hangs
    is not left alone with its version when the routes change. None: it has as long as any request."""
    upstream: asyncio.Task[object] | None = None
    """The wait for the first byte, cancelled when the variant is left."""
    slow: bool = False
    overdue: bool = False
    left: bool = False
    """Its wait ended because the variant was left. Kept here: routes that come meanwhile close the breaker."""

    def count_slow(self) -> None:
        """Count a request that is over the limit already, once."""
        if not self.slow:
            self.slow = True
            if self.counted:
                self.arm.requests += 1
                self.arm.slow += 1


@dataclass(kw_only=True)
class Flights:
    """All attempts under way."""

    live: LiveRoutes
    tally: Tally
    under_way: set[Flight] = field(default_factory=set)

    def begin(self, *, key: ArmKey, user: User, cap: int) -> Flight:
        """Start an attempt."""
        arm = self.tally.arm(key)
        counted = self.tally.counts_for_user(epoch=key[0], variant=key[2], user=user, cap=cap)
        overdue = self.live.overdue_seconds(key[1], key[2])
        flight = Flight(key=key, arm=arm, counted=counted, began=time.monotonic(), overdue_seconds=overdue)
        if not counted:
            arm.capped += 1
        self.under_way.add(flight)
        self.tally.in_flight[key[2]] = self.tally.in_flight.get(key[2], 0) + 1
        return flight

    def end(self, flight: Flight, *, failed: bool, what: str = "", judged: bool = True) -> None:
        """Finish an attempt. `judged` is False where the client went away: that says nothing about the variant."""
        self.under_way.discard(flight)
        self.tally.in_flight[flight.key[2]] -= 1
        if not judged:
            return
        seconds = time.monotonic() - flight.began
        routes = self.live.current
        limit = routes.judging.latency_limit_seconds if routes is not None else None
        if limit is not None and seconds > limit:
            flight.count_slow()
        if flight.counted:
            flight.arm.requests += not flight.slow
            flight.arm.errors += failed
            flight.arm.latency_sum_seconds += seconds
        epoch, rule, variant = flight.key
        if not flight.overdue:  # counted when it became so
            self.live.record(epoch=epoch, rule=rule, variant=variant, failed=failed, what=what)

    async def sweep(self) -> None:
        """Watch what is under way. Runs until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep_once(now=time.monotonic())

    def sweep_once(self, *, now: float) -> None:
        """Count what is slow or overdue, and wake requests that wait for too long or for a variant that was left."""
        routes = self.live.current
        limit = routes.judging.latency_limit_seconds if routes is not None else None
        for flight in list(self.under_way):
            epoch, rule, variant = flight.key
            age = now - flight.began
            if limit is not None and age > limit:
                flight.count_slow()
            overdue = flight.overdue_seconds
            waiting = flight.upstream is not None and not flight.upstream.done()
            if waiting and not flight.overdue and overdue is not None and age > overdue:
                flight.overdue = True
                self.live.record(
                    epoch=epoch, rule=rule, variant=variant, failed=True, what=f"no answer within {overdue:g} s"
                )
                if flight.upstream is not None:
                    flight.upstream.cancel()  # its client is answered by the fallback
            if waiting and flight.upstream is not None and self.live.is_open(rule, variant):
                flight.left = True
                flight.upstream.cancel()
