"""Two arms: exact validity of a block's e-value, error under continuous looking, speed, state."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy

from finetune_stats.eprocess import TwoRateState, two_rate_from_dict, update
from finetune_stats.two_rates import ArmCounts, Block, log_e_values, nearest_stable_rates

ALPHA = 0.05


def block(candidate_bad: float, candidate: float, stable_bad: float, stable: float) -> Block:
    return Block(
        candidate=ArmCounts(bad=candidate_bad, total=candidate), stable=ArmCounts(bad=stable_bad, total=stable)
    )


def drawn(rng: np.random.Generator, *, candidate: float, stable: float, totals: tuple[int, int]) -> Block:
    bad = rng.binomial(totals, (candidate, stable))
    return block(float(bad[0]), totals[0], float(bad[1]), totals[1])


@pytest.mark.parametrize("seed", range(5))
def test_nearest_pair_equals_numerical_minimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for difference in (-0.8, -0.02, 0.0, 0.005, 0.3, 0.95):
        c, s = rng.beta(0.5, 0.5, 2).clip(1e-4, 1 - 1e-4)
        nc, ns = rng.integers(1, 400, 2)

        def slope(x: float, c=c, s=s, nc=nc, ns=ns, d=difference) -> float:
            return float(nc * (c / (x + d) - (1 - c) / (1 - x - d)) + ns * (s / x - (1 - s) / (1 - x)))

        low, high = max(0.0, -difference), min(1.0, 1 - difference)
        edge = 1e-13 * (high - low)
        found = nearest_stable_rates(
            candidate_rates=np.array(c),
            stable_rates=np.array(s),
            candidate_total=float(nc),
            stable_total=float(ns),
            differences=np.array(difference),
        )
        assert float(found) == pytest.approx(
            scipy.optimize.brentq(slope, low + edge, high - edge, xtol=1e-15), rel=1e-7
        )


@pytest.mark.parametrize(
    ("totals", "alternative", "difference"),
    [((1, 1), (0.6, 0.2), 0.05), ((3, 7), (0.5, 0.1), 0.1), ((8, 2), (0.05, 0.3), 0.0), ((5, 5), (0.2, 0.2), 0.1)],
)
def test_e_value_has_expectation_at_most_one_on_the_whole_hypothesis(
    totals: tuple[int, int], alternative: tuple[float, float], difference: float
) -> None:
    """All outcomes enumerated, for a grid of pairs of rates on the hypothesis' side of the difference."""
    greater = alternative[0] - alternative[1] > difference
    outcomes = [range(total + 1) for total in totals]
    log_e = [
        log_e_values(
            block=block(bad, totals[0], stable_bad, totals[1]),
            candidate_rates=np.array(alternative[:1]),
            stable_rates=np.array(alternative[1:]),
            differences=np.array([difference]),
        )[0, 0]
        for bad, stable_bad in itertools.product(*outcomes)
    ]
    e_values = np.exp(log_e).reshape(len(outcomes[0]), len(outcomes[1]))
    worst = 0.0
    for candidate, stable in itertools.product(np.linspace(0, 1, 11), repeat=2):
        if (candidate - stable > difference) == greater:
            continue
        chances = [
            scipy.stats.binom.pmf(each, total, rate)
            for each, total, rate in zip(outcomes, totals, (candidate, stable), strict=True)
        ]
        worst = max(worst, float(chances[0] @ e_values @ chances[1]))
    assert 0.5 < worst <= 1 + 1e-9


@pytest.mark.parametrize(
    ("candidate", "stable", "totals"),
    [(0.12, 0.10, (5, 15)), (0.025, 0.005, (10, 10)), (0.42, 0.4, (1, 9))],
)
def test_looking_all_the_time_does_not_inflate_the_error(
    candidate: float, stable: float, totals: tuple[int, int]
) -> None:
    """The true excess is the margin, 2 points: neither "worse" nor "acceptable" may be claimed, at any of 40 looks."""
    rng = np.random.default_rng(1)
    runs, wrong_low, wrong_high = 50, 0, 0
    for _ in range(runs):
        state = TwoRateState(alpha=ALPHA, margin=0.02)
        for _ in range(40):
            state = update(state, drawn(rng, candidate=candidate, stable=stable, totals=totals))
        wrong_low += state.proves_loss
        wrong_high += state.high <= state.margin
    limit = ALPHA + 3 * (ALPHA * (1 - ALPHA) / runs) ** 0.5
    assert wrong_low / runs <= limit
    assert wrong_high / runs <= limit


def samples_to_prove(
    rng: np.random.Generator, *, candidate: float, stable: float, totals: tuple[int, int], margin: float, blocks: int
) -> float:
    """Candidate samples until a loss is proven; infinite if it is not."""
    state = TwoRateState(alpha=0.025, margin=margin)
    for count in range(1, blocks + 1):
        state = update(state, drawn(rng, candidate=candidate, stable=stable, totals=totals))
        if state.proves_loss:
            return count * totals[0]
    return float("inf")


@pytest.mark.parametrize(
    ("candidate", "stable", "totals", "margin", "within"),
    [(1.0, 0.003, (1, 19), 0.005, 6), (0.55, 0.25, (10, 30), 0.02, 80), (0.35, 0.25, (10, 30), 0.02, 900)],
)
def test_regressions_are_proven_soon(
    candidate: float, stable: float, totals: tuple[int, int], margin: float, within: int
) -> None:
    rng = np.random.default_rng(2)
    needed = [
        samples_to_prove(rng, candidate=candidate, stable=stable, totals=totals, margin=margin, blocks=250)
        for _ in range(9)
    ]
    assert np.median(needed) <= within


def test_equal_arms_are_proven_acceptable() -> None:
    rng = np.random.default_rng(3)
    state = TwoRateState(alpha=ALPHA, margin=0.05)
    for _ in range(150):
        state = update(state, drawn(rng, candidate=0.1, stable=0.1, totals=(10, 10)))
    assert state.high <= state.margin and not state.proves_loss
    assert state.low < 0 < state.high


def test_a_drift_of_both_arms_is_no_loss() -> None:
    """An outside cause doubles and redoubles both arms' errors."""
    rng = np.random.default_rng(4)
    state = TwoRateState(alpha=0.01, margin=0.02)
    for rate in np.linspace(0.01, 0.6, 80):
        state = update(state, drawn(rng, candidate=rate, stable=rate, totals=(10, 10)))
    assert not state.proves_loss


def test_one_arm_alone_waits() -> None:
    state = TwoRateState(alpha=ALPHA, margin=0.01)
    for _ in range(20):
        state = update(state, block(1, 1, 0, 0))
    assert (state.greater, state.pending.candidate.total) == ((), 20)
    state = update(state, block(0, 0, 0, 1))
    assert (state.candidate.total, state.stable.total, state.pending) == (20, 1, Block())


def test_weights_are_at_most_as_strong_as_observations() -> None:
    """Twenty like answers of one user, capped to one: no proof."""
    alone = update(update(TwoRateState(alpha=0.025, margin=0.01), block(0, 10, 0, 10)), block(20, 20, 0, 20))
    capped = update(update(TwoRateState(alpha=0.025, margin=0.01), block(0, 10, 0, 10)), block(1, 1, 0, 20))
    assert alone.proves_loss
    assert not capped.proves_loss


def test_a_restart_goes_on_where_it_was() -> None:
    rng = np.random.default_rng(5)
    straight = restarted = TwoRateState(alpha=ALPHA, margin=0.013)
    for _ in range(25):
        batch = drawn(rng, candidate=0.2, stable=0.1, totals=(3, 4))
        straight = update(straight, batch)
        restarted = two_rate_from_dict(json.loads(json.dumps(update(restarted, batch).to_dict())))
    waiting = update(restarted, block(1, 2, 0, 0))
    assert restarted == straight
    assert two_rate_from_dict(json.loads(json.dumps(waiting.to_dict()))) == waiting
    assert len(json.dumps(straight.to_dict())) < 4000


@pytest.mark.parametrize("document", [{"version": 0}, {"version": 1, "arms": [], "pending": {}}])
def test_unreadable_states_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"two-rate state has version|arms must be an object"):
        two_rate_from_dict(document)


@pytest.mark.parametrize(("bad", "total"), [(2, 1), (-1, 3), (0, float("nan"))])
def test_impossible_counts_do_not_construct(bad: float, total: float) -> None:
    with pytest.raises(ValueError, match="counts of an arm"):
        ArmCounts(bad=bad, total=total)
