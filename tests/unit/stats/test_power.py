"""The power formulas against simulation, and the promise of `needed`."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_stats.compare import compare_metric
from finetune_stats.paired_proportions import PairedCounts, p_value_of_loss
from finetune_stats.power import needed_together, proportion_needed, proportion_power, proportion_power_at
from finetune_stats.result import MetricKind


def simulated_power(*, n: int, discordance: float, difference: float, margin: float, repetitions: int = 1500) -> float:
    rng = np.random.default_rng(1)
    p10, p01 = (discordance + difference) / 2, (discordance - difference) / 2
    passes = 0
    for n10, n01, agreeing in rng.multinomial(n, [p10, p01, 1 - p10 - p01], size=repetitions):
        counts = PairedCounts(n11=agreeing, n10=n10, n01=n01, n00=0)
        passes += p_value_of_loss(counts=counts, margin=margin) > 0.975  # the lower bound is above -margin
    return passes / repetitions


@pytest.mark.parametrize(
    ("n", "discordance", "difference", "margin"),
    [(500, 0.1, 0.0, 0.03), (1000, 0.1, 0.0, 0.03), (300, 0.3, 0.02, 0.05), (800, 0.05, 0.03, -0.01)],
)
def test_proportion_power_is_what_simulation_gives(
    n: int, discordance: float, difference: float, margin: float
) -> None:
    formula = proportion_power_at(n=n, discordance=discordance, difference=difference, margin=margin, alpha=0.025)
    simulated = simulated_power(n=n, discordance=discordance, difference=difference, margin=margin)
    assert formula == pytest.approx(simulated, abs=0.045)


@pytest.mark.parametrize(("discordance", "margin"), [(0.05, 0.02), (0.1, 0.03), (0.2, 0.05)])
def test_needed_examples_reach_eighty_per_cent(discordance: float, margin: float) -> None:
    n = proportion_needed(discordance=discordance, difference=0, margin=margin, alpha=0.025)
    assert n is not None
    assert 0.77 <= simulated_power(n=n, discordance=discordance, difference=0, margin=margin) <= 0.85


def test_known_rule_of_thumb() -> None:
    """About 1,000 items show a 3-point change when the models disagree on about a tenth of them."""
    assert proportion_needed(discordance=0.1, difference=0, margin=0.03, alpha=0.025) == pytest.approx(900, abs=50)


def test_never_discordant_models_need_the_closed_form() -> None:
    needed = proportion_needed(discordance=0, difference=0, margin=0.01, alpha=0.025)
    assert needed == pytest.approx(1.96**2 * 99, abs=2)


def test_no_size_proves_an_improvement_that_is_not_there() -> None:
    assert proportion_needed(discordance=0.1, difference=0, margin=0, alpha=0.025) is None
    equal = PairedCounts(n11=80, n10=5, n01=5, n00=10)
    assert proportion_power(counts=equal, design_effect=1, margin=-0.02, alpha=0.025).needed is None


def test_groups_multiply_what_is_needed() -> None:
    counts = PairedCounts(n11=700, n10=50, n01=50, n00=200)
    alone = proportion_power(counts=counts, design_effect=1, margin=0.03, alpha=0.025)
    grouped = proportion_power(counts=counts, design_effect=2, margin=0.03, alpha=0.025)
    assert alone.needed is not None and grouped.needed is not None and alone.power is not None
    assert grouped.needed == pytest.approx(2 * alone.needed, rel=0.05)
    assert grouped.power is not None and grouped.power < alone.power


def test_needed_examples_of_a_mean_reach_eighty_per_cent() -> None:
    """A pilot says how many examples are needed; with that many, equal models pass as promised."""
    rng = np.random.default_rng(2)

    def compare(n: int):
        baseline = rng.lognormal(0, 0.5, n)
        candidate = baseline + 0.15 * rng.standard_t(4, n)
        return compare_metric(
            metric="loss", kind=MetricKind.MEAN, candidate=candidate, baseline=baseline, margin=0.04, seed=3
        )

    needed = compare(200).needed_n
    assert needed is not None
    passes = sum((result := compare(needed)).low is not None and result.low > -0.04 for _ in range(120))
    assert passes / 120 >= 0.75


def test_several_metrics_together_need_more_than_each_alone() -> None:
    assert needed_together(needed=[900], alpha=0.025) == 900
    assert 900 < needed_together(needed=[900, 300], alpha=0.025) < needed_together(needed=[900, 900], alpha=0.025)
    # Two independent metrics of power sqrt(0.8) each: (1.96 + 1.2505)^2 / (1.96 + 0.8416)^2 = 1.313.
    assert needed_together(needed=[1000, 1000], alpha=0.025) == pytest.approx(1313, abs=3)
