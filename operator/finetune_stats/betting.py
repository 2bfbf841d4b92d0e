"""A confidence sequence for the mean of bounded observations, by betting. Valid however often it is looked at.

For a mean m under test, a gambler starts with 1 and bets a fixed fraction of it on each observation. While the true
mean is m, no betting scheme can be expected to win; so its wealth exceeds 1/alpha, ever, with probability at most alpha
(Ville). The set of means against which nobody got rich is a confidence sequence: it may be looked at after every
observation, and one may stop, or go on, because of what it showed.

Source: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024)
1-27, in its "diversified" form: several gamblers with fixed fractions share the first stake and the test uses their
sum. Fixed fractions make the wealth depend on the observations only through their histogram. So the whole state is a
histogram: the order does not matter, batches add up, a restart loses nothing, and cumulative counts can be handed in
again and again without counting anything twice.

Assumptions: observations in [-1, 1]; given the past, each has the mean in question (no independence or identical
distribution needed). A weight w in [0, 1] is the exponent of an observation's factor; the k observations of one user
with 1/k each are together worth one and may depend on each other in any way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_stats.distributions import FloatArray
from finetune_stats.documents import Document, check_version, number, section

STATE_VERSION = 1
BINS = 65
"""Edges -1, -31/32, ..., 1. An observation between two edges is shared between them in proportion: since the logarithm
is concave that can only lower the wealth, so the rounding costs a little power and no validity."""

_EDGES: FloatArray = np.linspace(-1.0, 1.0, BINS)
_FRACTIONS: FloatArray = np.geomspace(0.01, 0.98, 10)
_STEPS = 1_000_000
"""Bounds are multiples of one millionth, so that looking again at the same data gives the same bound."""


def log_wealth(*, values: FloatArray, sizes: FloatArray, exponents: FloatArray, mean: float) -> float:
    """Log wealth against H0: sum of values / sum of sizes has expectation at most `mean`.

    Shapes (observations,). An observation is a value in [-size, size] with a size in (0, 1]: a single score has size 1,
    the summed scores of a group of examples have the group's size over the largest group's.
    """
    bets = _FRACTIONS / (1 + mean)
    factors = np.log1p(np.multiply.outer(bets, values - mean * sizes))
    per_gambler: FloatArray = factors @ exponents
    top = float(per_gambler.max())
    return top + math.log(float(np.mean(np.exp(per_gambler - top))))


def lower_bound(
    *, values: FloatArray, sizes: FloatArray, exponents: FloatArray, alpha: float, known: float = -1.0
) -> float:
    """The largest mean against which the wealth has reached 1/alpha; `known`, an earlier bound, if that is larger."""

    def excluded(step: int) -> bool:
        wealth = log_wealth(values=values, sizes=sizes, exponents=exponents, mean=step / _STEPS)
        return wealth >= -math.log(alpha)

    low, high = round(known * _STEPS), _STEPS
    if not excluded(low + 1):
        return known
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excluded(middle) else (low, middle)
    return low / _STEPS


@dataclass(frozen=True, kw_only=True)
class BoundedMeanState:
    """All that is known of a stream of paired differences in [-1, 1], positive where the candidate is better.

    `histogram` holds the summed weights at the edges, shape (BINS,). `low` and `high` are the tightest bounds reached
    so far (a confidence sequence may be intersected over time); they contradict each other (low > high) when the
    observations cannot come from one mean.
    """

    alpha: float
    histogram: tuple[float, ...] = (0.0,) * BINS
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1; got {self.alpha}")
        if len(self.histogram) != BINS:
            raise ValueError(f"a histogram has {BINS} bins; got {len(self.histogram)}")

    @property
    def samples(self) -> float:
        """Summed weight of the observations."""
        return math.fsum(self.histogram)

    @property
    def mean(self) -> float | None:
        """Weighted mean so far."""
        total = self.samples
        return float(np.dot(_EDGES, self.histogram)) / total if total > 0 else None

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values; empty bins are left out."""
        filled = {str(index): count for index, count in enumerate(self.histogram) if count}
        return {"version": STATE_VERSION, "alpha": self.alpha, "low": self.low, "high": self.high, "histogram": filled}


def bounded_mean_from_dict(document: Document) -> BoundedMeanState:
    """Read back `BoundedMeanState.to_dict`. Raises ValueError for another version or a malformed document."""
    check_version(document, of="bounded-mean state", expected=STATE_VERSION)
    filled = section(document, "histogram")
    return BoundedMeanState(
        alpha=number(document, "alpha"),
        histogram=tuple(number(filled, str(index)) if str(index) in filled else 0.0 for index in range(BINS)),
        low=number(document, "low"),
        high=number(document, "high"),
    )


def histogram_of(*, differences: FloatArray, weights: FloatArray | None = None) -> tuple[float, ...]:
    """Share observations, shape (observations,), between the edges next to them. Raises ValueError outside [-1, 1]."""
    if differences.size and not (np.abs(differences) <= 1).all():
        raise ValueError("paired differences must lie in [-1, 1]; scale the scores to [0, 1] first")
    weight = np.ones_like(differences) if weights is None else weights
    if weight.size and not ((weight >= 0) & (weight <= 1)).all():
        raise ValueError("weights must lie in [0, 1]")
    position = (differences + 1) * ((BINS - 1) / 2)
    left = np.minimum(position.astype(np.int64), BINS - 2)
    share = position - left
    counts = np.bincount(left, weights=weight * (1 - share), minlength=BINS)
    counts += np.bincount(left + 1, weights=weight * share, minlength=BINS)
    return tuple(counts.tolist())


def add(state: BoundedMeanState, *, histogram: tuple[float, ...]) -> BoundedMeanState:
    """The state after a further batch of observations (`histogram_of`)."""
    return with_total(state, histogram=tuple(a + b for a, b in zip(state.histogram, histogram, strict=True)))


def with_total(state: BoundedMeanState, *, histogram: tuple[float, ...]) -> BoundedMeanState:
    """The state when the histogram of all observations so far is the given one. Handing it in again changes nothing."""
    counts = np.asarray(histogram)
    used = counts > 0
    low, high = state.low, state.high
    if used.any():
        values, weights = _EDGES[used], counts[used]
        sizes = np.ones_like(values)
        low = lower_bound(values=values, sizes=sizes, exponents=weights, alpha=state.alpha, known=low)
        high = -lower_bound(values=-values, sizes=sizes, exponents=weights, alpha=state.alpha, known=-high)
    return BoundedMeanState(alpha=state.alpha, histogram=histogram, low=low, high=high)


def fixed_sample_bounds(*, group_sums: FloatArray, group_sizes: FloatArray, alpha: float) -> tuple[float, float]:
    """Two one-sided `1 - alpha` bounds on the mean over examples of differences in [-1, 1], from sums by group.

    Shapes (groups,). Exact for any sample size and any distribution, which is why the offline gate uses it where too
    few examples differ for a t interval or a bootstrap.
    """
    largest = float(group_sizes.max())
    sizes, values, ones = group_sizes / largest, group_sums / largest, np.ones(group_sizes.size)
    low = lower_bound(values=values, sizes=sizes, exponents=ones, alpha=alpha)
    return low, -lower_bound(values=-values, sizes=sizes, exponents=ones, alpha=alpha)


def fixed_sample_p_value(*, group_sums: FloatArray, group_sizes: FloatArray, mean: float) -> float:
    """p of H0: the mean over examples is at least `mean`; see `fixed_sample_bounds`."""
    largest = float(group_sizes.max())
    wealth = log_wealth(
        values=-group_sums / largest, sizes=group_sizes / largest, exponents=np.ones(group_sizes.size), mean=-mean
    )
    return min(1.0, math.exp(-wealth))
