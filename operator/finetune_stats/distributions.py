"""Quantiles and tail probabilities, typed.

The only module that touches scipy: `scipy.special` holds all that is needed and, unlike `scipy.stats`, loads in a few
milliseconds and megabytes, which the operator's and the gateway's memory limits care about.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def normal_cdf(x: float) -> float:
    """P(Z <= x) of a standard normal Z."""
    return float(special.ndtr(x))


def normal_quantile(probability: float) -> float:
    """The x with P(Z <= x) = probability; infinite at 0 and 1."""
    return float(special.ndtri(probability))


def t_cdf(x: float, *, degrees_of_freedom: float) -> float:
    """P(T <= x) of Student's t; the degrees of freedom need not be whole."""
    return float(special.stdtr(degrees_of_freedom, x))


def t_quantile(probability: float, *, degrees_of_freedom: float) -> float:
    """The x with P(T <= x) = probability of Student's t."""
    return float(special.stdtrit(degrees_of_freedom, probability))


def chi_square_quantile(probability: float, *, degrees_of_freedom: float) -> float:
    """The x with P(X <= x) = probability of a chi-square variable."""
    return float(special.chdtri(degrees_of_freedom, 1 - probability))


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The x with P(X <= x) = probability of a beta variable; a and b need not be whole."""
    return float(special.betaincinv(a, b, probability))
