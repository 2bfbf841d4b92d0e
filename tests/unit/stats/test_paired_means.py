"""The cluster-robust t against textbook special cases and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from finetune_stats.paired_means import clustered_mean


def test_singletons_are_students_paired_t() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, 57)
    found = clustered_mean(values=values, groups=np.arange(57))
    assert found is not None
    reference = scipy.stats.ttest_1samp(values, 0.3, alternative="less")
    assert found.p_value_below(value=0.3) == pytest.approx(reference.pvalue)
    interval = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.bounds(alpha=0.025) == pytest.approx((interval.low, interval.high))


def test_equal_groups_are_students_t_on_the_group_means() -> None:
    values = np.random.default_rng(2).normal(size=120)
    groups = np.arange(120) % 40
    found = clustered_mean(values=values, groups=groups)
    assert found is not None
    means = values.reshape(3, 40).mean(axis=0)
    assert found.degrees_of_freedom == pytest.approx(39)
    assert found.standard_error == pytest.approx(means.std(ddof=1) / np.sqrt(40))


def test_one_dominating_group_costs_degrees_of_freedom() -> None:
    groups = np.concatenate([np.arange(40), np.zeros(60, dtype=np.int64)])
    found = clustered_mean(values=np.random.default_rng(3).normal(size=100), groups=groups)
    assert found is not None
    assert found.degrees_of_freedom < 5


@pytest.mark.parametrize("values", [np.zeros(50), np.full(50, 0.3), np.full(50, 1e9) + 1e-7])
def test_no_variance_is_not_an_interval_of_length_zero(values: np.ndarray) -> None:
    assert clustered_mean(values=values, groups=np.arange(50)) is None


def test_one_group_has_no_variance() -> None:
    assert clustered_mean(values=np.array([1.0, 2.0]), groups=np.zeros(2, dtype=np.int64)) is None


def test_coverage_with_unequal_correlated_groups() -> None:
    """Within-group correlation 0.5, group sizes 1 to 12: a plain t interval would cover about 80 %."""
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 13, size=40)
    groups = np.repeat(np.arange(40), sizes)
    repetitions = 1500
    covered = 0
    for _ in range(repetitions):
        values = rng.normal(size=40)[groups] + rng.normal(size=groups.size)
        found = clustered_mean(values=values, groups=groups)
        assert found is not None
        low, high = found.bounds(alpha=0.025)
        covered += low <= 0 <= high
    assert 0.935 <= covered / repetitions <= 0.975
