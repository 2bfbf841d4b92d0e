"""How likely is a pass at this size, and how many examples would make it likely?

Both answer for a candidate that is truly as good as the baseline, since that is the one a gate must not turn away. A
variance estimated from few examples is itself uncertain, so both use its upper 80 % confidence bound: with `needed`
examples the power is 80 % or more in four of five repetitions, not in every other one.

Source of the proportion's formula: J. Nam, "Establishing equivalence of two treatments and sample size requirements in
matched-pairs design", Biometrics 53 (1997) 1422-1430, which is the power of Tango's test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune_stats.distributions import FloatArray, chi_square_quantile, normal_cdf, normal_quantile
from finetune_stats.paired_proportions import PairedCounts, restricted_n01_rate, wilson_interval

TARGET = 0.8
_CAUTION = 0.8


@dataclass(frozen=True, kw_only=True)
class Power:
    """`power` at the size at hand, and the examples `needed` for `TARGET`; None where it cannot be reached or told."""

    power: float | None
    needed: int | None


UNKNOWN = Power(power=None, needed=None)


def assumed_difference(*, observed: float, margin: float) -> float:
    """The true difference that power is computed for: none where a loss is allowed, else the observed one."""
    return 0.0 if margin > 0 else observed


def proportion_power_at(*, n: float, discordance: float, difference: float, margin: float, alpha: float) -> float:
    """P(Tango's lower bound > -margin) with `n` independent examples.

    `discordance` is the share of examples on which exactly one model is right, `difference` the true one.
    """
    null_sd, true_sd = _standard_deviations(discordance=discordance, difference=difference, margin=margin)
    distance = (difference + margin) * math.sqrt(n) - normal_quantile(1 - alpha) * null_sd
    if true_sd == 0:
        return 1.0 if distance > 0 else 0.0
    return normal_cdf(distance / true_sd)


def proportion_needed(
    *, discordance: float, difference: float, margin: float, alpha: float, power: float = TARGET
) -> int | None:
    """Independent examples for `power`; None where the true difference is not above -margin."""
    if difference + margin <= 0:
        return None
    null_sd, true_sd = _standard_deviations(discordance=discordance, difference=difference, margin=margin)
    root = (normal_quantile(1 - alpha) * null_sd + normal_quantile(power) * true_sd) / (difference + margin)
    return math.ceil(root * root)


def proportion_power(*, counts: PairedCounts, design_effect: float, margin: float, alpha: float) -> Power:
    """Power from observed counts whose examples are worth `1 / design_effect` independent ones each."""
    effective = counts.n / design_effect
    difference = assumed_difference(observed=counts.difference, margin=margin)
    # 1 - _CAUTION: a one-sided bound.
    _, discordance = wilson_interval(successes=counts.discordance * effective, n=effective, alpha=1 - _CAUTION)
    needed = proportion_needed(discordance=discordance, difference=difference, margin=margin, alpha=alpha)
    return Power(
        power=proportion_power_at(
            n=effective, discordance=discordance, difference=difference, margin=margin, alpha=alpha
        ),
        needed=None if needed is None else math.ceil(needed * design_effect),
    )


def interval_power(
    *, n: int, difference: float, low: float, standard_error: float, influence: FloatArray, margin: float
) -> Power:
    """Power from an interval that was computed: its lower half-width and its standard error shrink with sqrt(n).

    `influence`, shape (groups,), holds each group's contribution to the estimate. Heavy tails make their variance, and
    so the standard error, less certain; its kurtosis says by how much.
    """
    factor = _caution_factor(influence=influence)
    half, error = (difference - low) * factor, standard_error * factor
    distance = assumed_difference(observed=difference, margin=margin) + margin
    power = normal_cdf((distance - half) / error)
    if distance <= 0:
        return Power(power=power, needed=None)
    return Power(power=power, needed=math.ceil(n * ((half + normal_quantile(TARGET) * error) / distance) ** 2))


def needed_together(*, needed: Sequence[int], alpha: float) -> int:
    """Examples with which several metrics pass together with `TARGET`, from what each needs alone.

    Each metric's power at another n follows from what it needs, since its distance from the floor, in standard errors,
    grows with sqrt(n). The metrics are taken as independent; they are alike in practice, which helps.
    """
    edge = normal_quantile(1 - alpha)
    reach = edge + normal_quantile(TARGET)

    def power_of_all(n: int) -> float:
        return math.prod(normal_cdf(reach * math.sqrt(n / alone) - edge) for alone in needed)

    low, high = max(needed) - 1, max(needed)
    while power_of_all(high) < TARGET:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power_of_all(middle) < TARGET else (low, middle)
    return high


def _standard_deviations(*, discordance: float, difference: float, margin: float) -> tuple[float, float]:
    """Standard deviation of one pair's difference as the test estimates it at -margin, and as it truly is."""
    discordance = min(1.0, max(discordance, abs(difference)))
    expected = PairedCounts(
        n11=0.0,
        n10=(discordance + difference) / 2,
        n01=(discordance - difference) / 2,
        n00=1 - discordance,
    )
    restricted = restricted_n01_rate(counts=expected, difference=-margin)
    null_variance = 2 * restricted - margin * (1 + margin)
    return math.sqrt(max(null_variance, 0.0)), math.sqrt(max(discordance - difference**2, 0.0))


def _caution_factor(*, influence: FloatArray) -> float:
    """Upper confidence bound of a standard deviation over its estimate."""
    groups = influence.size
    centred = influence - influence.mean()
    variance = float(np.mean(centred**2))
    if groups < 3 or variance == 0:
        return 1.0
    kurtosis = float(np.mean(centred**4)) / variance**2
    degrees_of_freedom = min(groups - 1.0, max(3.0, 2 * groups / max(kurtosis - 1, 1e-9)))
    return math.sqrt(degrees_of_freedom / chi_square_quantile(1 - _CAUTION, degrees_of_freedom=degrees_of_freedom))
