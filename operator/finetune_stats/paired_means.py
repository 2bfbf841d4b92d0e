"""The mean difference of scores measured on the same examples (loss, ROUGE-L, a judge's mark): a cluster-robust t.

Sources: E. Miller, "Adding error bars to evals" (2024) for pairing and clustering; R. M. Bell and D. F. McCaffrey,
"Bias reduction in standard errors for linear regression with multi-stage samples", Survey Methodology 28 (2002)
169-181, for the variance (CR2) and its degrees of freedom, in closed form here as a mean has one regressor, a constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_stats.distributions import FloatArray, IntArray, t_cdf, t_quantile


@dataclass(frozen=True, kw_only=True)
class ClusteredMean:
    """A mean over examples with its standard error over groups."""

    mean: float
    standard_error: float
    degrees_of_freedom: float

    def bounds(self, *, alpha: float) -> tuple[float, float]:
        """Two one-sided `1 - alpha` bounds on the mean."""
        half = t_quantile(1 - alpha, degrees_of_freedom=self.degrees_of_freedom) * self.standard_error
        return self.mean - half, self.mean + half

    def p_value_below(self, *, value: float) -> float:
        """One-sided p of H0: mean >= value."""
        return t_cdf((self.mean - value) / self.standard_error, degrees_of_freedom=self.degrees_of_freedom)


def clustered_mean(*, values: FloatArray, groups: IntArray) -> ClusteredMean | None:
    """Mean of `values`, shape (examples,), whose group numbers are 0..G-1; None without variance between groups.

    Each group's summed residual is divided by sqrt(1 - its share of the examples), which makes the variance unbiased
    for independent examples; Satterthwaite's degrees of freedom fall below G - 1 when a few groups hold most examples.
    """
    n = values.size
    sizes = np.bincount(groups).astype(np.float64)
    if sizes.size < 2:
        return None
    mean = float(values.mean())
    sums = np.bincount(groups, weights=values - mean)
    leverage = 1 / (1 - sizes / n)
    variance = float(np.sum(leverage * sums * sums)) / n**2
    scale = max(1.0, abs(mean), float(np.abs(values).max()))
    if variance <= (1e-12 * scale) ** 2:
        return None
    weighted = leverage * sizes * sizes
    spread = np.sum(sizes * sizes) + (np.sum(weighted) ** 2 - np.sum(weighted * weighted)) / n**2
    return ClusteredMean(mean=mean, standard_error=math.sqrt(variance), degrees_of_freedom=float(n * n / spread))
