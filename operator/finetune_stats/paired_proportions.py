"""The difference of two right/wrong rates measured on the same examples: Tango's score interval.

    difference = p_candidate - p_baseline, estimated by (n10 - n01) / n

    | counts            | baseline right | baseline wrong |
    | candidate right   | n11            | n10            |
    | candidate wrong   | n01            | n00            |

Sources: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
design", Statistics in Medicine 17 (1998) 891-908, equations (24)-(26) (here with the sign of the difference turned
round); J. N. K. Rao and A. J. Scott, "A simple method for the analysis of clustered binary data", Biometrics 48 (1992)
577-585, for examples that come in groups.

Why not McNemar: it tests "no difference" and knows no margin. Why not Wald: with few discordant pairs, the usual case
between two versions of one model, its interval is far too short, and with none its length is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_stats.distributions import FloatArray, IntArray, normal_cdf, normal_quantile

FEWEST_DISCORDANT_GROUPS = 10
"""Below this many groups that hold a discordant pair, how alike the members of a group are cannot be estimated, and the
worst case (they are all the same) is taken."""

_BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """Counts of a paired comparison of right/wrong scores. Fractions are allowed: effective counts have them."""

    n11: float
    n10: float
    n01: float
    n00: float

    def __post_init__(self) -> None:
        cells = (self.n11, self.n10, self.n01, self.n00)
        if not all(math.isfinite(cell) and cell >= 0 for cell in cells) or sum(cells) <= 0:
            raise ValueError(f"paired counts must be finite, not negative and not all zero; got {cells}")

    @property
    def n(self) -> float:
        """Number of pairs."""
        return self.n11 + self.n10 + self.n01 + self.n00

    @property
    def candidate(self) -> float:
        """Share of examples that the candidate has right."""
        return (self.n11 + self.n10) / self.n

    @property
    def baseline(self) -> float:
        """Share of examples that the baseline has right."""
        return (self.n11 + self.n01) / self.n

    @property
    def difference(self) -> float:
        """Candidate less baseline."""
        return (self.n10 - self.n01) / self.n

    @property
    def discordance(self) -> float:
        """Share of examples on which exactly one of the two is right."""
        return (self.n10 + self.n01) / self.n

    def divided_by(self, *, design_effect: float) -> PairedCounts:
        """The counts of as many independent examples as these clustered ones are worth (Rao and Scott 1992)."""
        return PairedCounts(
            n11=self.n11 / design_effect,
            n10=self.n10 / design_effect,
            n01=self.n01 / design_effect,
            n00=self.n00 / design_effect,
        )


def count_pairs(*, candidate: FloatArray, baseline: FloatArray) -> PairedCounts:
    """Count the four cells of two arrays of zeros and ones, shape (examples,) each, in the same order."""
    return PairedCounts(
        n11=float(np.sum(candidate * baseline)),
        n10=float(np.sum(candidate * (1 - baseline))),
        n01=float(np.sum((1 - candidate) * baseline)),
        n00=float(np.sum((1 - candidate) * (1 - baseline))),
    )


def restricted_n01_rate(*, counts: PairedCounts, difference: float) -> float:
    """Maximum-likelihood estimate of P(candidate wrong, baseline right) where the difference is the given one."""
    n = counts.n
    a = 2 * n
    b = -counts.n10 - counts.n01 + (2 * n - counts.n10 + counts.n01) * difference
    c = -counts.n01 * difference * (1 - difference)
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    # The second form is the first without the cancellation that loses all digits when b is positive and large.
    return (root - b) / (2 * a) if b <= 0 else -2 * c / (root + b) if c < 0 else 0.0


def score_statistic(*, counts: PairedCounts, difference: float) -> float:
    """Tango's score statistic of H0: p_candidate - p_baseline = difference. About standard normal under H0."""
    distance = counts.n10 - counts.n01 - counts.n * difference
    variance = counts.n * (
        2 * restricted_n01_rate(counts=counts, difference=difference) + difference * (1 - difference)
    )
    if variance <= 1e-12 * counts.n:
        return 0.0 if abs(distance) <= 1e-9 * counts.n else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango_interval(*, counts: PairedCounts, alpha: float) -> tuple[float, float]:
    """Two one-sided `1 - alpha` bounds (alpha 0.025: a 95 % interval) on p_candidate - p_baseline.

    Defined for every table, tables without a discordant pair included.
    """
    z = normal_quantile(1 - alpha)

    def bound(*, outer: float, target: float) -> float:
        """The difference at which the statistic, which falls as the difference grows, passes `target`."""
        inside, outside = counts.difference, outer
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2
            if abs(score_statistic(counts=counts, difference=middle)) <= abs(target):
                inside = middle
            else:
                outside = middle
        return outside

    return bound(outer=-1.0, target=z), bound(outer=1.0, target=-z)


def p_value_of_loss(*, counts: PairedCounts, margin: float) -> float:
    """One-sided p of H0: p_candidate - p_baseline >= -margin. Small: the loss is proven larger than the margin."""
    return normal_cdf(score_statistic(counts=counts, difference=-margin))


def wilson_interval(*, successes: float, n: float, alpha: float) -> tuple[float, float]:
    """Two one-sided `1 - alpha` bounds on one proportion (E. B. Wilson, JASA 22 (1927) 209-212)."""
    z = normal_quantile(1 - alpha)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def design_effect(*, values: FloatArray, groups: IntArray, least_groups: int = FEWEST_DISCORDANT_GROUPS) -> float:
    """How many times the grouping multiplies the variance of the mean of `values`, never below 1.

    Arguments: values, shape (examples,), for example candidate less baseline; groups, shape (examples,), numbered
    0..G-1 without a gap. The estimate is the variance of the mean over groups (Obuchowski 1998 for paired rates)
    divided by the variance it would have with independent examples. When fewer than `least_groups` groups hold a
    value other than the most frequent one it is instead the worst case, members of a group all equal:
    sum of squared group sizes / examples. Never below 1, so that an unlucky estimate cannot make the gate laxer than
    one that ignores the groups.
    """
    n = values.size
    sizes = np.bincount(groups).astype(np.float64)
    if sizes.size == n:
        return 1.0
    worst = float(np.sum(sizes * sizes) / n)
    distinct, frequency = np.unique(values, return_counts=True)
    unusual = np.unique(groups[values != distinct[np.argmax(frequency)]]).size
    if unusual < least_groups:
        return worst
    residual = values - values.mean()
    sums = np.bincount(groups, weights=residual)
    clustered = float(sizes.size / (sizes.size - 1) * np.sum(sums * sums))
    independent = float(n / (n - 1) * np.sum(residual * residual))
    return max(1.0, clustered / independent)
