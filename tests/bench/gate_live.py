"""Simulated rollouts: how often do the live statistics roll back a good candidate, and how soon do they find a bad one?

A rollout here is: shadow (paired quality scores, errors of both versions), two canary steps (errors and slow answers of
two arms), and a guard window of an hour at 20 requests a second (error rate and latency against frozen limits, paired
probes). One alpha budget covers all of its tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_stats.betting import BoundedMeanState, add, histogram_of
from finetune_stats.budget import allocate
from finetune_stats.edetector import DetectorState, watch_paired, watch_rate
from finetune_stats.eprocess import TwoRateState, update
from finetune_stats.two_rates import ArmCounts, Block

Generator = np.random.Generator

ALPHA = 0.05
"""Chance that a candidate without a fault is rolled back at any moment of its rollout, at most."""
SHARES = allocate(
    alpha=ALPHA,
    steps={"shadow": 1, "five": 1, "quarter": 1, "guard": 2},
    metrics={"errors": 1, "slow": 1, "quality": 1},
)
ERROR_MARGIN, SLOW_MARGIN, QUALITY_MARGIN = 0.005, 0.01, 0.02
GUARD_REQUESTS = 72_000
GUARD_PROBES = 7_200
"""Two probes a second."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A version's true behaviour."""

    errors: float = 0.004
    slow: float = 0.03
    quality_change: float = 0.0
    """Mean paired difference to the stable version, of scores in [0, 1]."""


STABLE = Service()
AT_THE_MARGIN = Service(
    errors=STABLE.errors + ERROR_MARGIN, slow=STABLE.slow + SLOW_MARGIN, quality_change=-QUALITY_MARGIN
)


def paired(rng: Generator, service: Service, n: int) -> np.ndarray:
    """Right/wrong probes: 15 % discordant, or as many as the change needs."""
    discordant = max(0.15, abs(service.quality_change))
    u = rng.random(n)
    lost = (discordant - service.quality_change) / 2
    return np.where(u < lost, -1.0, np.where(u < discordant, 1.0, 0.0))


def arms(rng: Generator, *, candidate: float, stable: float, totals: tuple[int, int]) -> Block:
    """Outcomes of two arms."""
    bad = rng.binomial(totals, (candidate, stable))
    return Block(
        candidate=ArmCounts(bad=float(bad[0]), total=float(totals[0])),
        stable=ArmCounts(bad=float(bad[1]), total=float(totals[1])),
    )


def false_alarm(rng: Generator, candidate: Service) -> bool:
    """Whether any test of a whole rollout claims a regression of a candidate that has none beyond the margins."""
    return _shadow(rng, candidate) or _canary(rng, candidate) or _guard(rng, candidate)


def _shadow(rng: Generator, candidate: Service) -> bool:
    """600 mirrored requests, looked at every 20; the tightest bounds of all looks are in the last state."""
    quality = BoundedMeanState(alpha=SHARES["shadow", "quality"])
    errors = TwoRateState(alpha=SHARES["shadow", "errors"], margin=ERROR_MARGIN)
    slow = TwoRateState(alpha=SHARES["shadow", "slow"], margin=SLOW_MARGIN)
    for _ in range(30):
        quality = add(quality, histogram=histogram_of(differences=paired(rng, candidate, 20)))
        errors = update(errors, arms(rng, candidate=candidate.errors, stable=STABLE.errors, totals=(20, 20)))
        slow = update(slow, arms(rng, candidate=candidate.slow, stable=STABLE.slow, totals=(20, 20)))
    return quality.high < -QUALITY_MARGIN or errors.proves_loss or slow.proves_loss


def _canary(rng: Generator, candidate: Service) -> bool:
    for step, totals in (("five", (2, 38)), ("quarter", (10, 30))):
        errors = TwoRateState(alpha=SHARES[step, "errors"], margin=ERROR_MARGIN)
        slow = TwoRateState(alpha=SHARES[step, "slow"], margin=SLOW_MARGIN)
        for _ in range(60):
            errors = update(errors, arms(rng, candidate=candidate.errors, stable=STABLE.errors, totals=totals))
            slow = update(slow, arms(rng, candidate=candidate.slow, stable=STABLE.slow, totals=totals))
        if errors.proves_loss or slow.proves_loss:
            return True
    return False


def guard_detectors() -> tuple[DetectorState, DetectorState, DetectorState]:
    """Errors and slow answers against frozen limits, probes against -margin; the clock is the share of the window."""
    return (
        DetectorState(evidence="Rate", limit=STABLE.errors + ERROR_MARGIN, run_length=1 / SHARES["guard", "errors"]),
        DetectorState(evidence="Rate", limit=STABLE.slow + SLOW_MARGIN, run_length=1 / SHARES["guard", "slow"]),
        DetectorState(evidence="Paired", limit=QUALITY_MARGIN, run_length=1 / SHARES["guard", "quality"]),
    )


def _guard(rng: Generator, candidate: Service) -> bool:
    errors, slow, quality = guard_detectors()
    looks = 240
    requests, probes = GUARD_REQUESTS // looks, GUARD_PROBES // looks
    for _ in range(looks):
        bad = rng.binomial(requests, (candidate.errors, candidate.slow))
        errors = watch_rate(errors, batch=ArmCounts(bad=float(bad[0]), total=requests), clock=1 / looks)
        slow = watch_rate(slow, batch=ArmCounts(bad=float(bad[1]), total=requests), clock=1 / looks)
        probed = histogram_of(differences=paired(rng, candidate, probes))
        quality = watch_paired(quality, histogram=probed, clock=1 / looks)
    return errors.alarmed or slow.alarmed or quality.alarmed


def samples_to_detect_dead(rng: Generator, *, failing: float) -> float:
    """Requests from the first that may fail to the alarm, one by one, after ten minutes of good answers."""
    state, _, _ = guard_detectors()
    for _ in range(600):
        bad = float(rng.binomial(20, STABLE.errors))
        state = watch_rate(state, batch=ArmCounts(bad=bad, total=20.0), clock=20 / GUARD_REQUESTS)
    if state.alarmed:
        return math.nan
    count = 0
    while not state.alarmed and count < 5000:
        bad = float(rng.random() < failing)
        state = watch_rate(state, batch=ArmCounts(bad=bad, total=1.0), clock=1 / GUARD_REQUESTS)
        count += 1
    return count


def samples_to_detect_quality(rng: Generator, *, loss: float) -> float:
    """Probes from the loss of quality to the alarm, ten at a time, after ten minutes of unchanged quality."""
    _, _, state = guard_detectors()
    for _ in range(120):
        probed = histogram_of(differences=paired(rng, STABLE, 10))
        state = watch_paired(state, histogram=probed, clock=10 / GUARD_PROBES)
    if state.alarmed:
        return math.nan
    count = 0
    while not state.alarmed and count < 5000:
        probed = histogram_of(differences=paired(rng, Service(quality_change=-loss), 10))
        state = watch_paired(state, histogram=probed, clock=10 / GUARD_PROBES)
        count += 10
    return count


def samples_to_detect_in_shadow(rng: Generator, *, loss: float) -> float:
    """Mirrored requests until the betting sequence proves the loss, ten at a time."""
    state, count = BoundedMeanState(alpha=SHARES["shadow", "quality"]), 0
    while state.high >= -QUALITY_MARGIN and count < 5000:
        differences = paired(rng, Service(quality_change=-loss), 10)
        state = add(state, histogram=histogram_of(differences=differences))
        count += 10
    return count


def samples_to_detect_in_canary(rng: Generator, *, errors: float) -> float:
    """The candidate's requests until the two-arm test proves more errors; 5 % of 20 requests a second are its."""
    state, count = TwoRateState(alpha=SHARES["five", "errors"], margin=ERROR_MARGIN), 0
    while not state.proves_loss and count < 5000:
        state = update(state, arms(rng, candidate=errors, stable=STABLE.errors, totals=(1, 19)))
        count += 1
    return count
