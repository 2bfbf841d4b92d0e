"""Two versions that behave alike get the same counts, in whatever order, with whatever latency, whoever asks.

Requests are played against the real bookkeeping (flights, breakers, tallies) on a clock of the test's: each is given to
a version by a fair coin, and the tables of both versions must be such as come of exchanging them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.routes import Routes
from finetune_gateway import flights as flights_module
from finetune_gateway import live_routes as live_module
from finetune_gateway.flights import Flight, Flights
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.tally import Tally, User

LIMIT, OVERDUE, CAP = 4.0, 8.0, 3
SOMEBODY = User(source="10.0.0.9")
COUNTS = ("requests", "errors", "slow", "clients", "client_errors", "capped")


@dataclass(frozen=True)
class Behaviour:
    """What any version makes of a request, and how long its client waits."""

    user: User
    seconds: float
    failed: bool
    refused: bool
    patience: float


BEHAVIOURS = st.builds(
    Behaviour,
    user=st.sampled_from([User(source="10.0.0.1", name=name) for name in "abc"] + [User(source="10.0.0.1")]),
    seconds=st.sampled_from([0.1, 3.9, 4.5, 7.9, 8.5, 20.0]),
    failed=st.booleans(),
    refused=st.booleans(),
    patience=st.sampled_from([1.0, 6.0, 9.0, 100.0]),
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class _Wait:
    """A wait for the first byte."""

    def __init__(self) -> None:
        self.cancelled = False

    def done(self) -> bool:
        return self.cancelled

    def cancel(self) -> None:
        self.cancelled = True


def gateway(**breaker: Any) -> Flights:
    tally = Tally(endpoint="router", gateway="g")
    live = LiveRoutes(tally=tally, metrics=Metrics())
    rule = {"name": "all", "weights": {"new": 50, "old": 50}, "fallback": "old"}
    live.accept(
        Routes.model_validate(
            {
                "epoch": 1,
                "endpoint": "router",
                "model": "router",
                "task": "Chat",
                "variants": {name: {"name": name, "url": f"http://{name}", "ready": True} for name in ("new", "old")},
                "rules": [{**rule, "breaker": {"overdueSeconds": OVERDUE, **breaker}}],
                "judging": {"latencyLimitSeconds": LIMIT, "userWeightCap": CAP},
            }
        )
    )
    return Flights(live=live, tally=tally)


def attempt(flights: Flights, clock: Clock, one: Behaviour, *, variant: str, first: bool) -> bool:
    """One attempt as the proxy makes it; whether the next version is to be asked."""
    elsewhere = first and variant == "new"
    flight: Flight = flights.begin(key=(1, "all", variant), user=one.user, cap=CAP, first=first, elsewhere=elsewhere)
    wait: Any = _Wait()
    flight.upstream = wait
    ends = clock.now + min(one.seconds, one.patience)
    while clock.now < ends and not wait.cancelled:
        clock.now = min(ends, clock.now + 0.25)
        flights.sweep_once(now=clock.now)
    flight.upstream = None
    failed, gone = one.failed or wait.cancelled, one.patience < one.seconds and not wait.cancelled
    flights.end(
        flight, failed=failed, judged=not gone and flight.given_up != "breaker", refused=one.refused and not failed
    )
    return failed and elsewhere and not gone


def played(behaviours: list[Behaviour], given_to: list[str], clock: Clock, **breaker: Any) -> dict[str, list[int]]:
    flights = gateway(**breaker)
    for one, variant in zip(behaviours, given_to, strict=True):
        if attempt(flights, clock, one, variant=variant, first=True):
            attempt(flights, clock, one, variant="old", first=False)
    arms = flights.tally.arms
    return {name: [getattr(arms[1, "all", name], count) for count in COUNTS] for name in ("new", "old")
            if (1, "all", name) in arms}  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(flights_module, "time", found)
    monkeypatch.setattr(live_module, "time", found)
    return found


def test_exchanging_two_versions_that_behave_alike_exchanges_their_counts(clock: Clock) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(BEHAVIOURS, st.sampled_from(["new", "old"])), min_size=1, max_size=12))
    def exchanged(requests: list[tuple[Behaviour, str]]) -> None:
        behaviours = [one for one, _ in requests]
        there = [variant for _, variant in requests]
        back = ["new" if variant == "old" else "old" for variant in there]
        one = played(behaviours, there, clock, failures=1000)
        other = played(behaviours, back, clock, failures=1000)
        nothing = [0] * len(COUNTS)
        assert one.get("new", nothing) == other.get("old", nothing)
        assert one.get("old", nothing) == other.get("new", nothing)

    exchanged()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0], ids=lambda share: f"{share:.0%} of all requests fail")
def test_a_version_is_not_left_for_one_that_fails_as_often(share: float, clock: Clock) -> None:
    dice, left = random.Random(7), 0
    for _ in range(40):
        flights = gateway(windowSeconds=5.0)
        for _ in range(100):
            failing = Behaviour(user=SOMEBODY, seconds=0.1, failed=dice.random() < share, refused=False, patience=100.0)
            variant = dice.choice(["new", "old"])
            if attempt(flights, clock, failing, variant=variant, first=True):
                again = Behaviour(
                    user=SOMEBODY, seconds=0.1, failed=dice.random() < share, refused=False, patience=100.0
                )
                attempt(flights, clock, again, variant="old", first=False)
        left += flights.live.is_open("all", "new")
    assert left <= 4, "a matter of chance, where nobody knows yet how the fallback fares"


def test_a_version_that_fails_alone_is_left(clock: Clock) -> None:
    flights = gateway()
    failing = Behaviour(user=SOMEBODY, seconds=0.1, failed=True, refused=False, patience=100.0)
    for _ in range(6):
        attempt(flights, clock, failing, variant="new", first=True)
    assert flights.live.is_open("all", "new")


def test_a_version_that_is_gone_is_left_also_for_one_that_is_overloaded(clock: Clock) -> None:
    """Where two of three requests fail at the fallback, a version at which all fail is worse all the same."""
    flights = gateway(windowSeconds=60.0)
    gone = Behaviour(user=SOMEBODY, seconds=0.1, failed=True, refused=False, patience=100.0)
    for number in range(90):
        if number < 30 or attempt(flights, clock, gone, variant="new", first=True):
            slow = Behaviour(user=SOMEBODY, seconds=0.1, failed=number % 3 > 0, refused=False, patience=100.0)
            attempt(flights, clock, slow, variant="old", first=number < 30)
    assert flights.live.is_open("all", "new")


def test_one_user_whose_requests_are_all_wrong_is_one_voice(clock: Clock) -> None:
    wrong = Behaviour(
        user=User(source="10.0.0.1", name="loud"), seconds=0.1, failed=False, refused=True, patience=100.0
    )
    counts = played([wrong] * 30, ["new"] * 30, clock)["new"]
    assert dict(zip(COUNTS, counts, strict=True)) == {
        "requests": CAP, "errors": 0, "slow": 0, "clients": 1, "client_errors": 1, "capped": 30 - CAP
    }  # fmt: skip


def once(flights: Flights, user: User) -> None:
    """A request by the routes in force, refused."""
    key = (flights.live.epoch, "all", "new")
    flights.end(flights.begin(key=key, user=user, cap=CAP), failed=False, refused=True)


def test_a_user_has_no_more_voices_when_the_routes_of_the_same_comparison_are_written_again() -> None:
    """A guard counts from the promotion on; and somebody may put back the routes of any step."""
    flights, routes = gateway(), gateway().live.current
    assert routes is not None
    shares = [routes.rules[0].model_copy(update={"weights": {"new": 90.0, "old": 10.0}})]
    for epoch, rules in ((1, routes.rules), (2, routes.rules), (3, routes.rules), (4, shares)):
        flights.live.accept(routes.model_copy(update={"epoch": epoch, "rules": rules}))
        for _ in range(CAP + 1):
            once(flights, User(source="10.0.0.1", name="loud"))
    counts = [flights.tally.arms[epoch, "all", "new"] for epoch in (1, 2, 3, 4)]
    assert [each.requests for each in counts] == [CAP, 0, 0, CAP]
    assert [(each.clients, each.client_errors) for each in counts] == [(1, 1), (0, 0), (0, 0), (1, 1)]


def test_who_waits_for_a_version_that_hangs_is_answered_by_the_fallback_once_that_fails_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was away for a moment: two failures of one request, and none since."""
    clock, flights = Clock(), gateway()
    monkeypatch.setattr(flights_module, "time", clock)
    monkeypatch.setattr(live_module, "time", clock)
    for _ in range(2):
        flights.live.record(epoch=1, rule="all", variant="old", failed=True, what="refused")
    flight = flights.begin(key=(1, "all", "new"), user=SOMEBODY, cap=CAP, elsewhere=True)
    wait: Any = _Wait()
    flight.upstream = wait
    clock.now += OVERDUE + 1
    flights.sweep_once(now=clock.now)
    assert not wait.cancelled
    clock.now += 60
    flights.sweep_once(now=clock.now)
    assert (wait.cancelled, flight.given_up) == (True, "overdue")
