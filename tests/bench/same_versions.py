"""`python -m tests.bench.same_versions`: rollouts of a version that is the same as stable, and of ones that are worse.

Requests are played through the gateway's own bookkeeping (flights, breakers, judgements, tallies) on a simulated clock,
and its reports through the operator's live statistics: shadow and a step at half of the users, with probes, then guard.
Last line: one JSON object. `regressions`: how many rollouts of the same version were called a regression.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

from finetune_api.modelendpoint import LiveMetric
from finetune_api.routes import Judging, Routes
from finetune_gateway.answers import Answer, measures
from finetune_gateway.flights import Flights
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.quality import fault_of_answer
from finetune_gateway.tally import Tally, User
from finetune_operator.core.ports import Report
from finetune_operator.endpoint.analysis.analysis import advance, begun
from finetune_operator.endpoint.analysis.reports import Gateways
from finetune_operator.endpoint.analysis.rows import rows
from finetune_operator.endpoint.analysis.state import AnalysisState, Scope
from finetune_operator.endpoint.rollout.plan import CLIENT_ERRORS, DEFAULT_METRICS

LIMIT = 4.0
METRICS = (*DEFAULT_METRICS, LiveMetric(name="latency_seconds", limit=LIMIT, max_regression=0.05), CLIENT_ERRORS)
ALPHA = 0.05 / (3 * len(METRICS))
PARTS = {"Shadow": 0.0, "Canary": 50.0, "Guard": 100.0}
REQUESTS, BATCH, GUARD_SECONDS = 240, 20, 3600.0
NOW = datetime(2026, 1, 5, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request: what is the same about it whoever answers."""

    user: User
    wrong: bool
    """The client's own fault: any version refuses it."""
    with_system: bool
    patience: float
    dice: float
    load: float


Version = Callable[[Asked, random.Random], Answer]


def healthy(asked: Asked, rng: random.Random) -> Answer:
    """What stable does: a few failures, slow and bad answers, most labels right."""
    seconds = rng.lognormvariate(0.0, 0.6)
    if asked.wrong:
        return Answer(status=400, seconds=0.01)
    if rng.random() < 0.01:
        return Answer(status=500, seconds=seconds)
    text = "right" if asked.dice < 0.8 or rng.random() < 0.2 else "another label"
    return Answer(status=200, text="" if rng.random() < 0.03 else text, seconds=seconds, finish="stop")


def _sometimes(share: float, **changes: Any) -> Version:
    def answer(asked: Asked, rng: random.Random) -> Answer:
        good = healthy(asked, rng)
        return replace(good, **changes) if good.status == 200 and rng.random() < share else good

    return answer


def forgets_system_messages(asked: Asked, rng: random.Random) -> Answer:
    """Right only where there is none."""
    good = healthy(asked, rng)
    return replace(good, text="as I like") if asked.with_system and good.status == 200 else good


def dies_under_load(asked: Asked, rng: random.Random) -> Answer:
    """Too busy at peaks."""
    return Answer(status=503, seconds=0.01) if asked.load > 0.7 else healthy(asked, rng)


WORSE: dict[str, Version] = {
    "4xx": _sometimes(0.3, status=404, text=None),
    "broken streams": _sometimes(0.2, fault="it ended in the middle of an event", text=None),
    "slow": _sometimes(0.4, seconds=6.0),
    "empty": _sometimes(0.4, text=""),
    "wrong": _sometimes(0.5, text="another label"),
    "truncated": _sometimes(0.5, finish="length"),
    "other template": _sometimes(0.8, text="### Human: ### Assistant:"),
    "other dtype": _sometimes(0.3, text="an0ther l@bel"),
    "dies under load": dies_under_load,
    "forgets system messages": forgets_system_messages,
}


class Clock:
    """What the gateway's parts take for the time."""

    now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    time = monotonic


class _Waiting:
    """A wait for the first byte."""

    cancelled = False

    def done(self) -> bool:
        """Whether it is over."""
        return self.cancelled

    def cancel(self) -> None:
        """End it."""
        self.cancelled = True


@dataclass(kw_only=True)
class Rollout:
    """One candidate's way, until it is called a regression or has passed the guard."""

    rng: random.Random
    versions: dict[str, Version]
    slowness: float
    clock: Clock
    tally: Tally
    live: LiveRoutes
    flights: Flights

    def regression(self) -> str | None:
        """Where and why it is called one; None: it is not."""
        state: AnalysisState | None = None
        for epoch, (part, percent) in enumerate(PARTS.items(), start=1):
            self.live.accept(_routes(epoch=epoch, percent=percent))
            scope = Scope(
                part=part,  # type: ignore[arg-type]
                key=part,
                candidate="new",
                stable="old",
                rules=() if part == "Shadow" else ("default",),
                since_epoch=epoch,
                metrics=METRICS,
                alpha={metric.name: ALPHA for metric in METRICS},
                guard_seconds=GUARD_SECONDS,
            )
            state = begun(scope=scope, before=state, gateways=Gateways(names=(), reports=(), now=NOW))
            scope = replace(scope, reference=state.reference())
            for number in range(1, REQUESTS + 1):
                self._request(epoch=epoch, percent=percent, shadowed=part == "Shadow")
                if number % BATCH:
                    continue
                said = self.tally.observations(acknowledged_epoch=epoch)
                gateways = Gateways(names=("g",), reports=(Report(observations=said, received=NOW),), now=NOW)
                elapsed = GUARD_SECONDS * number / REQUESTS
                state = advance(state, scope=scope, gateways=gateways, elapsed_seconds=elapsed)
                found = [
                    f"{row.metric}: {row.reason}" for row in rows(state, scope=scope, needed=0) if row.verdict == "Fail"
                ]
                found += [f"left: {trip.reason}" for trip in self.tally.breakers if trip.variant == "new"]
                if found:
                    return f"{part}, {found[0]}"
        return None

    def _request(self, *, epoch: int, percent: float, shadowed: bool) -> None:
        rng, number = self.rng, self.rng.randrange(60)
        asked = Asked(
            user=User(source="10.0.0.1", has_key=True, name=f"u{number}"),
            wrong=number < 3,  # these clients do everything wrong
            with_system=rng.random() < 0.5,
            patience=rng.choice((3.0, 30.0, 30.0)),
            dice=rng.random(),
            load=rng.random(),
        )
        variant = "new" if rng.random() * 100 < percent else "old"
        answer = self._attempt(asked, epoch=epoch, variant=variant, first=True)
        if answer is not None and answer.failed and variant == "new":
            self._attempt(asked, epoch=epoch, variant="old", first=False)
        elif answer is not None and shadowed:
            self._pair(epoch, self._ask("new", asked), answer, source="Shadow", label=None)
        if percent < 100 and not asked.wrong:  # under guard they count for changes, and there are none
            self._pair(epoch, self._ask("new", asked), self._ask("old", asked), source="Probe", label="right")

    def _ask(self, variant: str, asked: Asked) -> Answer:
        answer = self.versions[variant](asked, self.rng)
        return replace(answer, seconds=answer.seconds * self.slowness)

    def _attempt(self, asked: Asked, *, epoch: int, variant: str, first: bool) -> Answer | None:
        """What the version answered; None: its client went away."""
        answer = self._ask(variant, asked)
        key, elsewhere = (epoch, "default", variant), first and variant == "new"
        cap = Judging().user_weight_cap
        flight = self.flights.begin(key=key, user=asked.user, cap=cap, first=first, elsewhere=elsewhere)
        waiting = _Waiting()
        flight.upstream = waiting  # type: ignore[assignment]
        ends = self.clock.now + min(answer.seconds, asked.patience)
        while self.clock.now < ends and not waiting.cancelled:
            self.clock.now = min(ends, self.clock.now + 0.5)
            self.flights.sweep_once(now=self.clock.now)
        flight.upstream = None
        gone = asked.patience < answer.seconds and not waiting.cancelled
        if waiting.cancelled:
            answer = Answer(status=0, seconds=answer.seconds)
        judged = not gone and flight.given_up != "breaker"
        self.flights.end(flight, failed=answer.failed, refused=answer.refused, what=str(answer.problem), judged=judged)
        if judged and flight.counted and _bad(answer, label=None) and not answer.failed:
            flight.arm.bad += 1
        return None if gone else answer

    def _pair(self, epoch: int, candidate: Answer, stable: Answer, *, source: str, label: str | None) -> None:
        found = measures(candidate, stable, bad=lambda answer: _bad(answer, label=label), latency_limit=LIMIT)
        for metric, (worse, bad) in found.items():
            self.tally.pair((epoch, source, "new", "old", metric)).add(candidate_bad=worse, stable_bad=bad)


def _bad(answer: Answer, *, label: str | None) -> bool:
    if label is not None and not answer.failed:
        return answer.text != label
    return answer.failed or fault_of_answer(answer, json_expected=False, limited=False) is not None


def _routes(*, epoch: int, percent: float) -> Routes:
    weights = {"new": percent, "old": 100.0 - percent}
    rule = {"name": "default", "weights": {name: share for name, share in weights.items() if share}, "fallback": "old"}
    return Routes.model_validate(
        {
            "epoch": epoch,
            "endpoint": "router",
            "model": "router",
            "task": "Chat",
            "variants": {name: {"name": name, "url": f"http://{name}", "ready": True} for name in ("new", "old")},
            "rules": [{**rule, "breaker": {"overdueSeconds": 2 * LIMIT}}],
            "judging": {"latencyLimitSeconds": LIMIT},
        }
    )


def rollout(candidate: Version, *, seed: int, slowness: float) -> str | None:
    """Where and why a candidate is called a regression; None: it is not."""
    clock, tally = Clock(), Tally(endpoint="router", gateway="g")
    live = LiveRoutes(tally=tally, metrics=Metrics())
    with patch("finetune_gateway.flights.time", clock), patch("finetune_gateway.live_routes.time", clock):
        return Rollout(
            rng=random.Random(seed),
            versions={"new": candidate, "old": healthy},
            slowness=slowness,
            clock=clock,
            tally=tally,
            live=live,
            flights=Flights(live=live, tally=tally),
        ).regression()


def main(arguments: list[str] | None = None) -> None:
    """Run them and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.same_versions", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=200)
    count, began = parser.parse_args(arguments).rollouts, time.monotonic()
    called = []
    for seed in range(count):
        reason = rollout(healthy, seed=seed, slowness=(0.2, 1.0, 4.0)[seed % 3])
        if reason is not None:
            called.append(reason)
            print(f"same version, seed {seed}: {reason}", file=sys.stderr)
    found = {name: rollout(version, seed=1, slowness=1.0) for name, version in WORSE.items()}
    for name, reason in found.items():
        print(f"{name:24s} {reason or 'NOT FOUND'}", file=sys.stderr)
    figures = {
        "rollouts": count,
        "regressions": len(called),
        "worse_ways": len(found),
        "worse_ways_found": sum(reason is not None for reason in found.values()),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
