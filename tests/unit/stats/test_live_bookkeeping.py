"""Budget, weights and ledger: nothing is spent twice, counted twice or counted too much."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_stats.budget import allocate
from finetune_stats.ledger import Ledger, absorb, forget, ledger_from_dict
from finetune_stats.weights import first_occurrences, user_weights, weight_of_next

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1)


@settings(max_examples=25)
@given(alpha=st.floats(0.001, 0.5), steps=WEIGHTS, metrics=WEIGHTS)
def test_the_budget_is_never_exceeded_and_nearly_used_up(
    alpha: float, steps: dict[str, float], metrics: dict[str, float]
) -> None:
    shares = allocate(alpha=alpha, steps=steps, metrics=metrics)
    assert len(shares) == len(steps) * len(metrics)
    assert math.fsum(shares.values()) <= alpha
    assert math.fsum(shares.values()) == pytest.approx(alpha)


def test_shares_follow_the_weights() -> None:
    shares = allocate(alpha=0.06, steps={"shadow": 1, "guard": 2}, metrics={"error_rate": 3, "quality": 1})
    assert shares[("guard", "error_rate")] == pytest.approx(0.03)
    assert shares[("shadow", "quality")] == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("alpha", "steps", "metrics", "words"),
    [(0.0, {"a": 1}, {"m": 1}, "alpha"), (0.1, {}, {"m": 1}, "steps"), (0.1, {"a": 1}, {"m": 0}, "metrics")],
)
def test_impossible_budgets_are_refused(
    alpha: float, steps: dict[str, float], metrics: dict[str, float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        allocate(alpha=alpha, steps=steps, metrics=metrics)


@settings(max_examples=50)
@given(users=st.lists(st.sampled_from("abc"), max_size=30), cap=st.floats(0.1, 5))
def test_no_user_weighs_more_than_the_cap(users: list[str], cap: float) -> None:
    weights = user_weights(users=users, cap=cap)
    assert ((weights > 0) & (weights <= 1)).all()
    for user in set(users):
        assert weights[np.array(users) == user].sum() <= cap + 1e-9


def test_a_stream_gives_a_users_first_observations_their_weight() -> None:
    used, weights = 0.0, []
    for _ in range(4):
        weights.append(weight_of_next(used=used, cap=2.5))
        used += weights[-1]
    assert weights == [1, 1, 0.5, 0]


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="cap"):
        user_weights(users=["a"], cap=0)


def test_a_repeated_probe_prompt_counts_once() -> None:
    fresh, seen = first_occurrences(keys=["p", "q", "p"], seen=frozenset())
    again, seen = first_occurrences(keys=["q", "r"], seen=seen)
    assert (fresh, again, seen) == ((True, True, False), (False, True), frozenset("pqr"))


POSTS = st.lists(st.tuples(st.sampled_from(["boot-1", "boot-2"]), st.integers(0, 12)), max_size=40)


@settings(max_examples=50)
@given(posts=POSTS)
def test_lost_repeated_and_overtaken_posts_count_once(posts: list[tuple[str, int]]) -> None:
    """Post k of a source says (k, 2k). Whatever arrives in whatever order, increments add up to the highest posts."""
    ledger, sums = Ledger(width=2), np.zeros(2)
    for source, k in posts:
        ledger, increment = absorb(ledger, source=source, cumulative=(k, 2 * k))
        assert min(increment) >= 0
        sums += increment
        ledger = ledger_from_dict(json.loads(json.dumps(ledger.to_dict())))
    highest = {source: max(k for s, k in posts if s == source) for source, _ in posts}
    assert sums.tolist() == [sum(highest.values()), 2 * sum(highest.values())]
    assert ledger.total == tuple(sums.tolist())


def test_sources_that_are_gone_can_be_dropped() -> None:
    ledger = Ledger(width=1)
    for source in ("boot-1", "boot-2"):
        ledger, _ = absorb(ledger, source=source, cumulative=(5.0,))
    assert forget(ledger, keep={"boot-2"}).sources == (("boot-2", (5.0,)),)


@pytest.mark.parametrize("cumulative", [(1.0,), (1.0, -2.0), (1.0, math.nan)])
def test_malformed_posts_are_refused(cumulative: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="post of boot-1"):
        absorb(Ledger(width=2), source="boot-1", cumulative=cumulative)


def test_unreadable_ledgers_are_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        ledger_from_dict({"version": 3})
