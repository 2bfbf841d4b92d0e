"""Tango's interval against published examples, an independent inversion of the score test, and exact enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy

from finetune_stats.paired_proportions import (
    PairedCounts,
    design_effect,
    p_value_of_loss,
    score_statistic,
    tango_interval,
    wilson_interval,
)


def counts(n11: float, n10: float, n01: float, n00: float) -> PairedCounts:
    return PairedCounts(n11=n11, n10=n10, n01=n01, n00=n00)


@pytest.mark.parametrize(
    ("table", "alpha", "published"),
    [
        # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014) 2850-2875: airway hyper-responsiveness before and
        # after stem cell transplantation (Bentur et al. 2009), Tango asymptotic score interval.
        (counts(1, 1, 7, 12), 0.025, (-0.517, -0.026)),
        # Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables (2017), chapter 8: complete response
        # before and after consolidation therapy (Cavo et al. 2012).
        (counts(59, 6, 16, 80), 0.025, (-0.1240, -0.0054)),
        # Agresti and Min, Statistics in Medicine 24 (2005) 729-740.
        (counts(53, 16, 8, 9), 0.025, (-0.020, 0.207)),
        # R package PropCIs 0.3-0, scoreci.mp(25, 28, 618) at 90 %, and scoreci.mp(20, 60, 1000) at 95 %.
        (counts(0, 28, 25, 565), 0.05, (-0.0148, 0.0247)),
        (counts(0, 60, 20, 920), 0.025, (0.0231, 0.0584)),
    ],
)
def test_published_intervals(table: PairedCounts, alpha: float, published: tuple[float, float]) -> None:
    digits = 3 if abs(published[1]) in (0.026, 0.207) else 4
    assert tuple(round(bound, digits) for bound in tango_interval(counts=table, alpha=alpha)) == published


def inverted_by_brute_force(table: PairedCounts, alpha: float) -> tuple[float, float]:
    """The score test from its definition: restricted likelihood maximised numerically, inverted by root finding."""
    z = scipy.stats.norm.ppf(1 - alpha)

    def statistic(delta: float) -> float:
        def minus_log_likelihood(q01: float) -> float:
            cells = ((table.n10, q01 + delta), (table.n01, q01), (table.n11 + table.n00, 1 - 2 * q01 - delta))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

        low, high = max(0.0, -delta), (1 - delta) / 2
        q01 = scipy.optimize.minimize_scalar(
            minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
        ).x
        variance = (2 * q01 + delta - delta**2) / table.n
        return (table.difference - delta) / math.sqrt(variance)

    margin = 1e-6
    low = scipy.optimize.brentq(lambda d: statistic(d) - z, -1 + margin, table.difference - margin)
    high = scipy.optimize.brentq(lambda d: statistic(d) + z, table.difference + margin, 1 - margin)
    return low, high


@pytest.mark.parametrize(
    "table",
    [counts(40, 5, 9, 6), counts(200, 3, 0, 7), counts(10, 0, 12, 80), counts(1500, 61, 80, 359), counts(3, 9, 9, 9)],
)
def test_equals_the_inverted_score_test(table: PairedCounts) -> None:
    assert tango_interval(counts=table, alpha=0.025) == pytest.approx(inverted_by_brute_force(table, 0.025), abs=2e-6)


@pytest.mark.parametrize("n", [30, 400])
def test_no_discordant_pair_has_the_closed_form(n: int) -> None:
    z = scipy.stats.norm.ppf(0.975)
    expected = z * z / (n + z * z)
    assert tango_interval(counts=counts(n - 5, 0, 0, 5), alpha=0.025) == pytest.approx((-expected, expected), abs=1e-9)


@pytest.mark.parametrize(("table", "expected_end"), [(counts(0, 50, 0, 0), 1), (counts(0, 0, 50, 0), -1)])
def test_all_pairs_discordant(table: PairedCounts, expected_end: int) -> None:
    low, high = tango_interval(counts=table, alpha=0.025)
    assert -1 <= low < high <= 1
    assert pytest.approx(expected_end) == (high if expected_end > 0 else low)


def test_exchanging_the_models_mirrors_the_interval() -> None:
    low, high = tango_interval(counts=counts(70, 12, 5, 13), alpha=0.025)
    assert tango_interval(counts=counts(70, 5, 12, 13), alpha=0.025) == pytest.approx((-high, -low))


def test_p_value_agrees_with_the_interval() -> None:
    table = counts(700, 20, 60, 220)
    _, high = tango_interval(counts=table, alpha=0.025)
    assert p_value_of_loss(counts=table, margin=-high) == pytest.approx(0.025, abs=1e-6)
    assert p_value_of_loss(counts=table, margin=-table.difference) == pytest.approx(0.5, abs=1e-9)


def test_restricted_estimate_keeps_its_digits_far_from_the_data() -> None:
    huge = counts(1e9, 3, 4, 1e9)
    assert score_statistic(counts=huge, difference=0.5) < -1e4
    assert math.isfinite(score_statistic(counts=huge, difference=-0.999999))


@pytest.mark.parametrize(
    ("n", "discordance", "margin", "at_most"),
    # The score test is asymptotic: the exact error may exceed 2.5 % slightly at the smallest n that the gate accepts.
    [
        (30, 0.2, 0.1, 0.035),
        (30, 0.15, 0.15, 0.03),
        (50, 0.1, 0.05, 0.035),
        (100, 0.1, 0.02, 0.03),
        (200, 0.05, 0.01, 0.03),
    ],
)
def test_exact_error_rates_at_the_margin(n: int, discordance: float, margin: float, at_most: float) -> None:
    """All tables enumerated, true loss = the margin: P(pass) and P(proven loss beyond the margin)."""
    p10, p01 = (discordance - margin) / 2, (discordance + margin) / 2
    p10, p01 = max(p10, 0.0), max(p01, margin)
    passes = fails = covered = 0.0
    tables = np.array([(n10, n01, n - n10 - n01) for n10 in range(n + 1) for n01 in range(n + 1 - n10)])
    probabilities = scipy.stats.multinomial.pmf(tables, n, [p10, p01, 1 - p10 - p01])
    for (n10, n01, same), probability in zip(tables.tolist(), probabilities.tolist(), strict=True):
        if probability < 1e-9:
            continue
        table = counts(same, n10, n01, 0)
        z = score_statistic(counts=table, difference=-margin)
        passes += probability * (z > 1.95996398454)
        fails += probability * (z < -1.95996398454)
        covered += probability * (abs(z) <= 1.95996398454)
    assert passes <= at_most
    assert fails <= 0.04
    assert covered >= 0.93


def test_duplicated_examples_add_no_information() -> None:
    """Each example three times, in groups of three: the worst case of clustering, and exactly the plain interval."""
    rng = np.random.default_rng(5)
    difference = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=400)
    groups = np.repeat(np.arange(400), 3)
    effect = design_effect(values=np.repeat(difference, 3), groups=groups)
    assert effect == pytest.approx(3, rel=0.01)


def test_design_effect_is_one_for_singletons_and_never_below() -> None:
    rng = np.random.default_rng(6)
    values = rng.choice([-1.0, 0.0, 1.0], size=300)
    assert design_effect(values=values, groups=np.arange(300)) == 1
    alternating = np.tile([1.0, -1.0], 150)
    assert design_effect(values=alternating, groups=np.arange(300) // 2) == 1


def test_few_discordant_groups_take_the_worst_case() -> None:
    values = np.zeros(90)
    values[0] = 1
    sizes_of_three = np.arange(90) // 3
    assert design_effect(values=values, groups=sizes_of_three) == pytest.approx(3)


def test_wilson_published_example() -> None:
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81/263 and 0/20, Wilson's score method."""
    assert wilson_interval(successes=81, n=263, alpha=0.025) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(successes=0, n=20, alpha=0.025) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize("cells", [(0, 0, 0, 0), (-1, 2, 3, 4), (1, math.nan, 3, 4)])
def test_impossible_counts_are_refused(cells: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="paired counts"):
        counts(*cells)
