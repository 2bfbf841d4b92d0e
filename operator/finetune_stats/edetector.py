"""Did something get worse since the promotion? Change detection with a stated false-alarm rate.

A test over all data since the promotion dilutes a regression that starts late: an hour of good answers outweighs the
first bad minute. A detector instead weighs every possible moment of change. For each of a few alternatives, an
e-detector of the Shiryaev-Roberts type keeps the sum, over all moments so far, of the evidence gathered since then:

    M <- (M + clock) * E(batch)

E has expectation at most 1 while nothing is wrong, so M grows on average no faster than the clock, and an alarm at
M >= run_length comes on average not before `run_length` units of the clock; within `c` units there is a false alarm
with probability at most c / run_length. The clock counts what the caller likes to state the rate in: requests, or
elapsed time over the guard window (then run_length = 1 / alpha promises at most alpha per window).

Source: J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", New
England Journal of Statistics in Data Science 2 (2023) 229-260: e-detectors as sums over moments of change, mixtures of
baseline increments over alternatives. Three kinds of evidence:

- `watch_rate`: bad outcomes against a limit (a frozen rate from before the promotion plus the margin). Fastest, needs
  no traffic on the old version, and takes an outside cause for a regression.
- `watch_two_rates`: bad outcomes against those of a concurrent arm (holdback). Immune to outside causes, slower.
- `watch_paired`: paired differences of bounded scores (probes) against -margin.

Assumptions: before the change, outcomes have (given the past) a rate of at most the limit, respectively a rate
difference of at most the margin, respectively a mean difference of at least -margin. Weights: as in betting.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from finetune_stats.betting import BINS
from finetune_stats.distributions import FloatArray
from finetune_stats.documents import Document, check_version, number, numbers, section
from finetune_stats.two_rates import (
    NO_BLOCK,
    NO_OUTCOMES,
    SMALLEST_RATE,
    ArmCounts,
    Block,
    block_from_dict,
    log_e_values,
)

STATE_VERSION = 1

Evidence = Literal["Rate", "TwoRates", "Paired"]

_LOG_ODDS_SHIFTS: FloatArray = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 6.5])
"""Alternatives for rates: how much higher the log odds of a bad answer became, from a point or two to nothing works."""

_FRACTIONS: FloatArray = np.geomspace(0.05, 0.98, 7)
"""Alternatives for paired scores: the fraction of the wealth that is bet."""

_MEMORY = 5000.0
"""The stable arm's running rate remembers about this many outcomes, so that it follows slow drift."""

_EDGES: FloatArray = np.linspace(-1.0, 1.0, BINS)


@dataclass(frozen=True, kw_only=True)
class DetectorState:
    """All that a detector knows.

    `limit` is the highest acceptable rate (Rate), the margin of the rate difference (TwoRates) or the largest
    acceptable mean loss (Paired). `log_sums` holds the logarithms of M per alternative, empty before the first batch.
    """

    evidence: Evidence
    limit: float
    run_length: float
    """Average run length to a false alarm, at least; in units of the clock."""
    log_sums: tuple[float, ...] = ()
    clock: float = 0.0
    observations: float = 0.0
    alarm_clock: float | None = None
    """The clock at the first alarm. An alarm stays: to watch again, start a new state."""
    stable: ArmCounts = NO_OUTCOMES
    pending: Block = NO_BLOCK
    pending_clock: float = 0.0

    def __post_init__(self) -> None:
        lowest = 0.0 if self.evidence == "Rate" else -1.0
        if not (lowest < self.limit < 1 and self.run_length > 1):
            raise ValueError(
                f"{self.evidence} detector: limit must be in ({lowest:g}, 1) and run_length above 1; "
                f"got {self.limit} and {self.run_length}"
            )

    @property
    def alarmed(self) -> bool:
        """The regression is proven, with the stated false-alarm rate."""
        return self.alarm_clock is not None

    @property
    def log_evidence(self) -> float:
        """Logarithm of the detector's value; an alarm needs log(run_length)."""
        if not self.log_sums:
            return -math.inf
        return float(np.logaddexp.reduce(np.array(self.log_sums)) - math.log(len(self.log_sums)))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "version": STATE_VERSION,
            "evidence": self.evidence,
            "limit": self.limit,
            "runLength": self.run_length,
            "logSums": list(self.log_sums),
            "clock": self.clock,
            "observations": self.observations,
            "alarmClock": self.alarm_clock,
            "seen": Block(stable=self.stable).to_dict(),
            "pending": self.pending.to_dict(),
            "pendingClock": self.pending_clock,
        }


def detector_from_dict(document: Document) -> DetectorState:
    """Read back `DetectorState.to_dict`. Raises ValueError for another version or a malformed document."""
    check_version(document, of="detector state", expected=STATE_VERSION)
    evidence = document.get("evidence")
    if evidence not in ("Rate", "TwoRates", "Paired"):
        raise ValueError(f"detector state: evidence is {evidence!r}; expected Rate, TwoRates or Paired")
    return DetectorState(
        evidence=evidence,
        limit=number(document, "limit"),
        run_length=number(document, "runLength"),
        log_sums=numbers(document, "logSums"),
        clock=number(document, "clock"),
        observations=number(document, "observations"),
        alarm_clock=None if document.get("alarmClock") is None else number(document, "alarmClock"),
        stable=block_from_dict(section(document, "seen")).stable,
        pending=block_from_dict(section(document, "pending")),
        pending_clock=number(document, "pendingClock"),
    )


def watch_rate(state: DetectorState, *, batch: ArmCounts, clock: float) -> DetectorState:
    """The state after a batch of outcomes during which the clock advanced by `clock` (> 0)."""
    _check(state, evidence="Rate", clock=clock)
    odds = state.limit / (1 - state.limit) * np.exp(_LOG_ODDS_SHIFTS)
    rates = np.minimum(odds / (1 + odds), 1 - SMALLEST_RATE)
    good = batch.total - batch.bad
    log_e = batch.bad * np.log(rates / state.limit) + good * np.log((1 - rates) / (1 - state.limit))
    # A limit so high that an alternative is capped below it would turn the evidence round.
    return _advanced(state, log_e=np.where(rates > state.limit, log_e, 0.0), clock=clock, observations=batch.total)


def watch_two_rates(state: DetectorState, *, block: Block, clock: float) -> DetectorState:
    """The state after a block of both arms' outcomes. It is held back until both arms have some."""
    _check(state, evidence="TwoRates", clock=clock)
    waiting, waited = state.pending.plus(block), state.pending_clock + clock
    if not waiting.has_both_arms:
        return replace(state, pending=waiting, pending_clock=waited)
    rate = (state.stable.bad + 0.5) / (state.stable.total + 2.5)
    odds = rate / (1 - rate) * np.exp(_LOG_ODDS_SHIFTS)
    candidate_rates = np.minimum(odds / (1 + odds), 1 - SMALLEST_RATE)
    stable_rates = np.full_like(candidate_rates, max(rate, SMALLEST_RATE))
    log_e = log_e_values(
        block=waiting,
        candidate_rates=candidate_rates,
        stable_rates=stable_rates,
        differences=np.array([state.limit]),
    )[0]
    advanced = _advanced(
        state,
        log_e=np.where(candidate_rates - stable_rates > state.limit, log_e, 0.0),
        clock=waited,
        observations=waiting.candidate.total + waiting.stable.total,
    )
    seen = state.stable.plus(waiting.stable)
    forget = min(1.0, _MEMORY / seen.total)
    return replace(
        advanced,
        stable=ArmCounts(bad=seen.bad * forget, total=seen.total * forget),
        pending=NO_BLOCK,
        pending_clock=0.0,
    )


def watch_paired(state: DetectorState, *, histogram: tuple[float, ...], clock: float) -> DetectorState:
    """The state after a batch of paired differences in [-1, 1] (`betting.histogram_of`), positive if better."""
    _check(state, evidence="Paired", clock=clock)
    counts = np.asarray(histogram)
    bets = _FRACTIONS / (1 + state.limit)
    log_e = np.log1p(np.multiply.outer(bets, -_EDGES - state.limit)) @ counts
    return _advanced(state, log_e=log_e, clock=clock, observations=float(counts.sum()))


def _advanced(state: DetectorState, *, log_e: FloatArray, clock: float, observations: float) -> DetectorState:
    if observations <= 0:  # silence is no evidence: a moment without traffic is not a moment of change
        return replace(state, clock=state.clock + clock)
    sums = np.array(state.log_sums) if state.log_sums else np.full(log_e.shape, -np.inf)
    advanced = np.logaddexp(sums, math.log(clock)) + log_e
    # Far beyond an alarm more digits say nothing, and an overflow would lose the state.
    advanced = np.clip(advanced, -700.0, 700.0)
    now = replace(
        state,
        log_sums=tuple(float(f"{value:.10g}") for value in advanced),
        clock=state.clock + clock,
        observations=state.observations + observations,
    )
    if now.alarm_clock is None and now.log_evidence >= math.log(state.run_length):
        return replace(now, alarm_clock=now.clock)
    return now


def _check(state: DetectorState, *, evidence: Evidence, clock: float) -> None:
    if state.evidence != evidence:
        raise ValueError(f"this detector watches {state.evidence}; it was given {evidence}")
    if not (math.isfinite(clock) and clock > 0):
        raise ValueError(f"the clock must advance by more than 0; got {clock}")
