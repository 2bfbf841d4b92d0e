"""Are the candidate's bad answers more frequent than the stable version's? An e-process for two concurrent arms.

For a grid of differences, one e-process gathers evidence that the true difference of the rates is greater, another
that it is smaller. Each is a product of block e-values (two_rates.py) of alternatives chosen before the block was seen,
averaged over a few alternatives. Under its hypothesis it exceeds 1/alpha, ever, with probability at most alpha (Ville),
so it may be looked at at any time. The differences that are not excluded form an anytime-valid confidence sequence.

Assumptions: within a block the requests of one rule are assigned to arms at random, or at least independently of how
they will turn out; outcomes are independent given the rates. The rates may drift from block to block as long as their
difference stays on one side of the margin. Blocks of different strata (rules) each get a state of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

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

_GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)

_PRIOR = ArmCounts(bad=0.5, total=2.5)
"""Pseudo-outcomes of the running rate estimates; they cost or gain a little power, never validity."""

_JUMPS = (1.5, 4.0)
"""Two alternatives guess that the candidate's log odds of a bad answer are higher by this than the stable one's: they
win at once when a candidate is broken, where the running estimate must first learn it."""

_LOG_STAKES = np.log(np.array([0.4, 0.3, 0.15, 0.15]))
"""First stakes of: running estimates of both rates, equal rates, and the two jumps."""


@dataclass(frozen=True, kw_only=True)
class TwoRateState:
    """All that is known of two arms.

    `low` and `high` bound candidate rate - stable rate (the tightest bounds so far); each is wrong, ever, with
    probability at most `alpha`. `greater` and `smaller` hold log wealths, shape (grid, alternatives) row by row, with 8
    significant digits, so that what is stored is what is computed with. `pending` waits until both arms have outcomes.
    """

    alpha: float
    margin: float
    """The largest acceptable excess of the candidate's rate, in (-1, 1)."""
    candidate: ArmCounts = NO_OUTCOMES
    stable: ArmCounts = NO_OUTCOMES
    pending: Block = NO_BLOCK
    greater: tuple[float, ...] = ()
    smaller: tuple[float, ...] = ()
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and -1 < self.margin < 1):
            raise ValueError(f"alpha must be in (0, 1) and margin in (-1, 1); got {self.alpha} and {self.margin}")

    @property
    def differences(self) -> tuple[float, ...]:
        """The grid of differences, ascending; the margin is one of them."""
        return tuple(sorted({-d for d in _GRID} | {0.0, self.margin} | set(_GRID)))

    @property
    def proves_loss(self) -> bool:
        """The candidate's rate exceeds the stable one's by more than the margin."""
        return self.low >= self.margin

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "version": STATE_VERSION,
            "alpha": self.alpha,
            "margin": self.margin,
            "low": self.low,
            "high": self.high,
            "arms": Block(candidate=self.candidate, stable=self.stable).to_dict(),
            "pending": self.pending.to_dict(),
            "greater": list(self.greater),
            "smaller": list(self.smaller),
        }


def two_rate_from_dict(document: Document) -> TwoRateState:
    """Read back `TwoRateState.to_dict`. Raises ValueError for another version or a malformed document."""
    check_version(document, of="two-rate state", expected=STATE_VERSION)
    arms = block_from_dict(section(document, "arms"))
    return TwoRateState(
        alpha=number(document, "alpha"),
        margin=number(document, "margin"),
        low=number(document, "low"),
        high=number(document, "high"),
        candidate=arms.candidate,
        stable=arms.stable,
        pending=block_from_dict(section(document, "pending")),
        greater=numbers(document, "greater"),
        smaller=numbers(document, "smaller"),
    )


def update(state: TwoRateState, block: Block) -> TwoRateState:
    """The state after a further block. Feed increments, not totals; `ledger.py` makes them from cumulative counts."""
    waiting = state.pending.plus(block)
    if not waiting.has_both_arms:
        return replace(state, pending=waiting)
    differences = np.array(state.differences)
    candidate_rates, stable_rates = _alternatives(candidate=state.candidate, stable=state.stable)
    gains = log_e_values(
        block=waiting, candidate_rates=candidate_rates, stable_rates=stable_rates, differences=differences
    )
    alternative = (candidate_rates - stable_rates)[None, :]
    greater = _wealth(state.greater, gains.shape) + np.where(alternative > differences[:, None], gains, 0)
    smaller = _wealth(state.smaller, gains.shape) + np.where(alternative < differences[:, None], gains, 0)
    excluded_below = differences[_log_mean(greater) >= -math.log(state.alpha)]
    excluded_above = differences[_log_mean(smaller) >= -math.log(state.alpha)]
    return replace(
        state,
        candidate=state.candidate.plus(waiting.candidate),
        stable=state.stable.plus(waiting.stable),
        pending=NO_BLOCK,
        greater=_stored(greater),
        smaller=_stored(smaller),
        low=max(state.low, float(excluded_below.max(initial=-1.0))),
        high=min(state.high, float(excluded_above.min(initial=1.0))),
    )


def _alternatives(*, candidate: ArmCounts, stable: ArmCounts) -> tuple[FloatArray, FloatArray]:
    """The guesses for the next block, from the past only: candidate rates and stable rates, shape (alternatives,)."""
    candidate_rate, stable_rate = _estimate(candidate), _estimate(stable)
    equal = _estimate(candidate.plus(stable))
    odds = stable_rate / (1 - stable_rate)
    jumped = [odds * math.exp(jump) / (1 + odds * math.exp(jump)) for jump in _JUMPS]
    candidates = np.array([candidate_rate, equal, *jumped])
    stables = np.array([stable_rate, equal, *([stable_rate] * len(jumped))])
    return np.clip(candidates, SMALLEST_RATE, 1 - SMALLEST_RATE), np.clip(stables, SMALLEST_RATE, 1 - SMALLEST_RATE)


def _estimate(arm: ArmCounts) -> float:
    return (arm.bad + _PRIOR.bad) / (arm.total + _PRIOR.total)


def _wealth(stored: tuple[float, ...], shape: tuple[int, ...]) -> FloatArray:
    return np.array(stored).reshape(shape) if stored else np.zeros(shape)


def _stored(wealth: FloatArray) -> tuple[float, ...]:
    return tuple(float(f"{value:.8g}") for value in wealth.ravel())


def _log_mean(wealth: FloatArray) -> FloatArray:
    return np.asarray(np.logaddexp.reduce(wealth + _LOG_STAKES, axis=1), dtype=np.float64)
