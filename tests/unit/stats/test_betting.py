"""The betting confidence sequence: validity under continuous looking, speed, state."""

from __future__ import annotations

import json

import numpy as np
import pytest

from finetune_stats.betting import (
    BINS,
    BoundedMeanState,
    add,
    bounded_mean_from_dict,
    fixed_sample_bounds,
    fixed_sample_p_value,
    histogram_of,
    log_wealth,
    with_total,
)

ALPHA = 0.05


def stream(rng: np.random.Generator, *, mean: float, n: int) -> np.ndarray:
    """Paired right/wrong differences, a fifth of them discordant."""
    u = rng.random(n)
    return np.where(u < (0.2 + mean) / 2, 1.0, np.where(u < 0.2, -1.0, 0.0))


def watched(differences: np.ndarray, *, batch: int) -> list[BoundedMeanState]:
    state, states = BoundedMeanState(alpha=ALPHA), []
    for start in range(0, differences.size, batch):
        state = add(state, histogram=histogram_of(differences=differences[start : start + batch]))
        states.append(state)
    return states


@pytest.mark.parametrize("mean", [0.0, -0.1])
def test_looking_all_the_time_does_not_inflate_the_error(mean: float) -> None:
    """Each bound is wrong at any of 40 looks in at most alpha of the runs; a t interval's would be in about a fifth."""
    rng = np.random.default_rng(1)
    runs = 60
    too_high = too_low = 0
    for _ in range(runs):
        final = watched(stream(rng, mean=mean, n=600), batch=15)[-1]  # bounds are the tightest of all looks
        too_high += final.low > mean
        too_low += final.high < mean
    limit = ALPHA + 3 * (ALPHA * (1 - ALPHA) / runs) ** 0.5
    assert too_high / runs <= limit
    assert too_low / runs <= limit


@pytest.mark.parametrize(("mean", "within"), [(-0.3, 150), (-0.12, 700)])
def test_a_loss_beyond_two_points_is_proven_soon(mean: float, within: int) -> None:
    rng = np.random.default_rng(2)
    needed = []
    for _ in range(15):
        discordant = max(0.2, abs(mean) + 0.02)
        u = rng.random(1500)
        differences = np.where(u < (discordant - mean) / 2, -1.0, np.where(u < discordant, 1.0, 0.0))
        states = watched(differences, batch=20)
        needed.append(next((20 * i for i, s in enumerate(states, start=1) if s.high < -0.02), 9999))
    assert np.median(needed) <= within


def test_wealth_is_a_fair_game() -> None:
    """Two outcomes, all sequences of length 8 enumerated: the expected wealth at the true mean is 1."""
    mean, expectation = 0.2, 0.0
    for bits in range(256):
        values = np.array([1.0 if bits >> i & 1 else -1.0 for i in range(8)])
        ups = bits.bit_count()
        wealth = np.exp(log_wealth(values=values, sizes=np.ones(8), exponents=np.ones(8), mean=mean))
        expectation += 0.6**ups * 0.4 ** (8 - ups) * wealth
    assert expectation == pytest.approx(1)


def test_order_and_batches_do_not_matter() -> None:
    differences = np.random.default_rng(3).uniform(-1, 1, 200)
    whole = add(BoundedMeanState(alpha=ALPHA), histogram=histogram_of(differences=differences))
    last = watched(differences[::-1], batch=7)[-1]
    assert last.histogram == pytest.approx(whole.histogram)
    assert last.mean == pytest.approx(differences.mean())
    assert (last.low, last.high) == (max(last.low, whole.low), min(last.high, whole.high))


def test_handing_in_the_same_total_twice_changes_nothing() -> None:
    histogram = histogram_of(differences=np.random.default_rng(4).uniform(-1, 1, 50))
    once = with_total(BoundedMeanState(alpha=ALPHA), histogram=histogram)
    assert with_total(once, histogram=histogram) == once


def test_sharing_between_edges_never_narrows_the_interval() -> None:
    differences = np.random.default_rng(5).uniform(-0.4, 0.6, 300)
    exact_low, exact_high = fixed_sample_bounds(group_sums=differences, group_sizes=np.ones(300), alpha=ALPHA)
    binned = add(BoundedMeanState(alpha=ALPHA), histogram=histogram_of(differences=differences))
    assert exact_low - 0.005 <= binned.low <= exact_low + 1e-9
    assert exact_high - 1e-9 <= binned.high <= exact_high + 0.005


def test_weights_count_as_parts_of_observations() -> None:
    differences = np.random.default_rng(6).uniform(-1, 1, 60)
    once = add(BoundedMeanState(alpha=ALPHA), histogram=histogram_of(differences=differences))
    thirds = histogram_of(differences=np.repeat(differences, 3), weights=np.full(180, 1 / 3))
    assert add(BoundedMeanState(alpha=ALPHA), histogram=thirds).low == pytest.approx(once.low)


def test_a_restart_goes_on_where_it_was() -> None:
    differences = stream(np.random.default_rng(7), mean=-0.1, n=400)
    straight = watched(differences, batch=20)[-1]
    state = BoundedMeanState(alpha=ALPHA)
    for start in range(0, 400, 20):
        state = add(state, histogram=histogram_of(differences=differences[start : start + 20]))
        state = bounded_mean_from_dict(json.loads(json.dumps(state.to_dict())))
    assert state == straight


def test_a_mean_that_moves_is_noticed() -> None:
    state = add(BoundedMeanState(alpha=ALPHA), histogram=histogram_of(differences=np.full(300, 0.5)))
    state = add(state, histogram=histogram_of(differences=np.full(900, -0.9)))
    assert state.low > state.high


def test_empty_state_knows_nothing() -> None:
    state = BoundedMeanState(alpha=ALPHA)
    assert (state.low, state.high, state.mean, state.samples) == (-1, 1, None, 0)


def test_fixed_sample_p_value_agrees_with_the_bounds() -> None:
    sums = np.random.default_rng(8).uniform(-1, 0.8, 200)
    _, high = fixed_sample_bounds(group_sums=sums, group_sizes=np.ones(200), alpha=0.025)
    assert fixed_sample_p_value(group_sums=sums, group_sizes=np.ones(200), mean=high) == pytest.approx(0.025, rel=1e-3)


def test_groups_bound_the_mean_over_examples() -> None:
    """True mean over examples -0.05, over groups 0: large groups are worse. Coverage is of the mean over examples."""
    rng = np.random.default_rng(9)
    sizes = np.tile([1.0, 3.0], 100)
    chance = np.tile([0.35, 0.1], 100)  # of losing / winning one point in all members of the group
    wrong = 0
    for _ in range(200):
        u = rng.random(200)
        step = np.where(u < 0.2, -1.0, np.where(u < 0.2 + chance, 1.0, 0.0))
        low, high = fixed_sample_bounds(group_sums=step * sizes, group_sizes=sizes, alpha=ALPHA)
        truth = float(np.sum((chance - 0.2) * sizes) / sizes.sum())
        wrong += not low <= truth <= high
    assert wrong / 200 <= 0.1


@pytest.mark.parametrize(
    ("differences", "weights", "words"),
    [([1.5], None, r"\[-1, 1\]"), ([np.nan], None, r"\[-1, 1\]"), ([0.5], [2.0], "weights")],
)
def test_values_out_of_range_are_refused(differences: list[float], weights: list[float] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        histogram_of(differences=np.array(differences), weights=None if weights is None else np.array(weights))


@pytest.mark.parametrize(
    "document", [{"version": 2}, {"version": 1, "alpha": 0.1, "low": -1, "high": 1, "histogram": []}]
)
def test_unreadable_states_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"bounded-mean state has version|histogram must be an object"):
        bounded_mean_from_dict(document)


def test_impossible_states_do_not_construct() -> None:
    with pytest.raises(ValueError, match="alpha"):
        BoundedMeanState(alpha=1.0)
    with pytest.raises(ValueError, match=str(BINS)):
        BoundedMeanState(alpha=0.1, histogram=(0.0,))
