"""BCa over groups against scipy's BCa on independent observations, and its own p-value against its bounds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from finetune_stats.bootstrap import BcaDistribution, bca_distribution, resample, sum_by_group, summed


def mean_distribution(values: np.ndarray, *, seed: int, resamples: int = 20_000) -> BcaDistribution:
    counts = np.stack([values, np.ones_like(values)], axis=1)
    found = bca_distribution(
        resampling=resample(group_counts=counts, seed=seed, resamples=resamples),
        statistic=lambda sums: sums[..., 0] / sums[..., 1],
    )
    assert found is not None
    return found


def test_equals_scipy_on_skewed_data() -> None:
    values = np.random.default_rng(1).lognormal(0, 1, 80)
    found = mean_distribution(values, seed=2)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(3)
    )
    interval = reference.confidence_interval
    assert found.bound(probability=0.025) == pytest.approx(interval.low, abs=0.1 * found.standard_error)
    assert found.bound(probability=0.975) == pytest.approx(interval.high, abs=0.1 * found.standard_error)


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975])
def test_p_value_inverts_the_bound(probability: float) -> None:
    found = mean_distribution(np.random.default_rng(4).exponential(size=60), seed=5)
    assert found.p_value_below(value=found.bound(probability=probability)) == pytest.approx(1 - probability, abs=2e-3)


def test_same_seed_same_result_other_seed_nearly_so() -> None:
    values = np.random.default_rng(6).normal(size=100)
    first, again, other = (mean_distribution(values, seed=seed, resamples=4000) for seed in (7, 7, 8))
    assert first.bound(probability=0.975) == again.bound(probability=0.975)
    difference = first.bound(probability=0.975) - other.bound(probability=0.975)
    assert 0 < abs(difference) < 0.15 * first.standard_error


def test_a_group_is_drawn_as_a_whole() -> None:
    """Two columns that are equal in each group stay equal in each resample."""
    counts = np.repeat(np.random.default_rng(9).normal(size=(30, 1)), 2, axis=1)
    drawn = resample(group_counts=counts, seed=1, resamples=300)
    assert np.allclose(drawn.resampled[:, 0], drawn.resampled[:, 1])
    assert np.allclose(drawn.without_one.sum(axis=0), 29 * drawn.whole)


def test_sums_by_group() -> None:
    groups = np.array([2, 0, 2, 1])
    counts = np.array([[1.0, 10], [2, 20], [4, 40], [8, 80]])
    assert sum_by_group(counts=counts, groups=groups).tolist() == [[2, 20], [8, 80], [5, 50]]
    assert summed(values=counts[:, 0], groups=groups).tolist() == [2, 8, 5]


def test_a_constant_statistic_has_no_distribution() -> None:
    counts = np.ones((40, 1))
    assert (
        bca_distribution(resampling=resample(group_counts=counts, seed=1), statistic=lambda s: s[..., 0] / 40) is None
    )
