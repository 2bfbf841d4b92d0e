"""Change detectors: false alarms within the stated rate, late regressions found fast, state."""

from __future__ import annotations

import json
from typing import Protocol

import numpy as np
import pytest

from finetune_stats.betting import histogram_of
from finetune_stats.edetector import DetectorState, detector_from_dict, watch_paired, watch_rate, watch_two_rates
from finetune_stats.two_rates import ArmCounts, Block

WINDOW = 72_000.0
"""Requests in a guard window of an hour at 20 per second; the clock is the share of the window."""
BATCH = 20


class Step(Protocol):
    """One batch of a simulated service."""

    def __call__(
        self, state: DetectorState, rng: np.random.Generator, *, changed: bool, clock: float
    ) -> DetectorState: ...


def rate_step(*, before: float, after: float) -> Step:
    def step(state: DetectorState, rng: np.random.Generator, *, changed: bool, clock: float) -> DetectorState:
        bad = rng.binomial(BATCH, after if changed else before)
        return watch_rate(state, batch=ArmCounts(bad=float(bad), total=BATCH), clock=clock)

    return step


def paired_step(*, before: float, after: float) -> Step:
    def step(state: DetectorState, rng: np.random.Generator, *, changed: bool, clock: float) -> DetectorState:
        differences = np.clip(rng.normal(after if changed else before, 0.3, BATCH), -1, 1)
        return watch_paired(state, histogram=histogram_of(differences=differences), clock=clock)

    return step


def two_rate_step(*, before: float, after: float, stable: float) -> Step:
    def step(state: DetectorState, rng: np.random.Generator, *, changed: bool, clock: float) -> DetectorState:
        bad = rng.binomial((14, 6), (after if changed else before, stable))
        block = Block(candidate=ArmCounts(bad=float(bad[0]), total=14), stable=ArmCounts(bad=float(bad[1]), total=6))
        return watch_two_rates(state, block=block, clock=clock)

    return step


RATE = DetectorState(evidence="Rate", limit=0.03, run_length=100)
PAIRED = DetectorState(evidence="Paired", limit=0.02, run_length=100)
TWO_RATES = DetectorState(evidence="TwoRates", limit=0.02, run_length=100)


@pytest.mark.parametrize(
    ("start", "step"),
    [
        (DetectorState(evidence="Rate", limit=0.1, run_length=5), rate_step(before=0.1, after=0.1)),
        (DetectorState(evidence="Paired", limit=0.1, run_length=5), paired_step(before=-0.1, after=-0.1)),
        (DetectorState(evidence="TwoRates", limit=0.1, run_length=5), two_rate_step(before=0.3, after=0.3, stable=0.2)),
    ],
    ids=["Rate", "Paired", "TwoRates"],
)
def test_false_alarms_at_the_limit_stay_within_the_stated_rate(start: DetectorState, step: Step) -> None:
    """Exactly at the limit for a whole window, run length 5 windows: an alarm in at most a fifth of the windows."""
    rng = np.random.default_rng(1)
    windows, batches, alarms = 100, 60, 0
    for _ in range(windows):
        state = start
        for _ in range(batches):
            state = step(state, rng, changed=False, clock=1 / batches)
        alarms += state.alarmed
    assert alarms / windows <= 0.2 + 3 * (0.2 * 0.8 / windows) ** 0.5


@pytest.mark.parametrize(
    ("start", "step", "within"),
    [
        (RATE, rate_step(before=0.005, after=1.0), 20),
        (RATE, rate_step(before=0.005, after=0.5), 40),
        (RATE, rate_step(before=0.005, after=0.13), 250),
        (PAIRED, paired_step(before=0.0, after=-0.3), 120),
        (PAIRED, paired_step(before=0.0, after=-0.1), 600),
        (TWO_RATES, two_rate_step(before=0.2, after=0.5, stable=0.2), 500),
        (TWO_RATES, two_rate_step(before=0.01, after=1.0, stable=0.01), 60),
    ],
    ids=["all-fail", "half-fail", "13-percent", "minus-30-points", "minus-10-points", "holdback-30", "holdback-dead"],
)
def test_a_late_regression_is_found_soon(start: DetectorState, step: Step, within: int) -> None:
    """2,000 good requests first: a cumulative test would need as many bad ones to forget them."""
    rng = np.random.default_rng(2)
    delays = []
    for _ in range(7):
        state = start
        for _ in range(100):
            state = step(state, rng, changed=False, clock=BATCH / WINDOW)
        assert not state.alarmed
        delay = 0
        while not state.alarmed and delay < 2000:
            state = step(state, rng, changed=True, clock=BATCH / WINDOW)
            delay += BATCH
        delays.append(delay)
    assert np.median(delays) <= within


def test_single_requests_of_a_dead_backend() -> None:
    state = DetectorState(evidence="Rate", limit=0.008, run_length=WINDOW / 0.01)
    for _ in range(3000):
        state = watch_rate(state, batch=ArmCounts(bad=0.0, total=1.0), clock=1.0)
    needed = 0
    while not state.alarmed:
        state = watch_rate(state, batch=ArmCounts(bad=1.0, total=1.0), clock=1.0)
        needed += 1
    assert needed <= 5


def test_an_outside_cause_is_no_regression_against_a_holdback() -> None:
    rng = np.random.default_rng(3)
    state = TWO_RATES
    for rate in [0.02] * 50 + [0.4] * 50:
        bad = rng.binomial((14, 6), rate)
        block = Block(candidate=ArmCounts(bad=float(bad[0]), total=14), stable=ArmCounts(bad=float(bad[1]), total=6))
        state = watch_two_rates(state, block=block, clock=BATCH / WINDOW)
    assert not state.alarmed


def test_an_alarm_stays_and_says_when() -> None:
    state = RATE
    for bad in (0.0, 20.0, 0.0, 0.0):
        state = watch_rate(state, batch=ArmCounts(bad=bad, total=20.0), clock=0.25)
    assert (state.alarmed, state.alarm_clock, state.clock, state.observations) == (True, 0.5, 1.0, 80.0)


def test_silence_is_no_evidence() -> None:
    state = RATE
    for _ in range(1000):
        state = watch_rate(state, batch=ArmCounts(), clock=1.0)
    assert (state.clock, state.alarmed, state.log_sums) == (1000, False, ())


def test_a_missing_arm_is_waited_for() -> None:
    alone = Block(candidate=ArmCounts(bad=3, total=3))
    state = watch_two_rates(watch_two_rates(TWO_RATES, block=alone, clock=0.1), block=alone, clock=0.1)
    assert (state.observations, state.pending_clock) == (0, 0.2)
    state = watch_two_rates(state, block=Block(stable=ArmCounts(bad=0, total=1)), clock=0.1)
    assert (state.observations, state.clock, state.pending) == (7, pytest.approx(0.3), Block())


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (RATE, rate_step(before=0.02, after=0.1)),
        (PAIRED, paired_step(before=0, after=-0.1)),
        (TWO_RATES, two_rate_step(before=0.1, after=0.3, stable=0.1)),
    ],
)
def test_a_restart_goes_on_where_it_was(state: DetectorState, step: Step) -> None:
    straight, restarted = state, state
    one, other = np.random.default_rng(4), np.random.default_rng(4)
    for _ in range(30):
        straight = step(straight, one, changed=True, clock=0.01)
        restarted = detector_from_dict(
            json.loads(json.dumps(step(restarted, other, changed=True, clock=0.01).to_dict()))
        )
    assert restarted == straight
    assert len(json.dumps(straight.to_dict())) < 1000


@pytest.mark.parametrize(
    ("evidence", "limit", "run_length"),
    [("Rate", 0.0, 100), ("Rate", 1.0, 100), ("Paired", -1.0, 100), ("TwoRates", 0.1, 1.0)],
)
def test_impossible_detectors_do_not_construct(evidence: str, limit: float, run_length: float) -> None:
    with pytest.raises(ValueError, match=evidence):
        DetectorState(evidence=evidence, limit=limit, run_length=run_length)  # type: ignore[arg-type]


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="watches Paired"):
        watch_rate(PAIRED, batch=ArmCounts(), clock=1)
    with pytest.raises(ValueError, match="clock"):
        watch_rate(RATE, batch=ArmCounts(), clock=0)
    with pytest.raises(ValueError, match="version"):
        detector_from_dict({"version": 9})
    with pytest.raises(ValueError, match="evidence"):
        detector_from_dict({"version": 1, "evidence": "Other"})
