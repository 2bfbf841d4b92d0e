"""Budget, weights and ledger: nothing is spent twice, counted twice or counted too much."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_stats.budget import allocate
from finetune_stats.ledger import ENDED, Ledger, absorb, ledger_from_dict, without_ended

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


def test_sources_that_have_ended_are_one_sum() -> None:
    ledger = Ledger(width=2)
    for number in range(1, 5):
        ledger, _ = absorb(ledger, source=f"boot-{number}", cumulative=(number, 1))
    ledger = without_ended(without_ended(ledger, ended=("boot-1", "boot-2")), ended=["boot-3"])
    assert ledger.sources == (("boot-4", (4.0, 1.0)), (ENDED, (6.0, 3.0)))
    assert without_ended(ledger, ended=("boot-1",)) == ledger
    assert absorb(ledger, source="boot-4", cumulative=(5, 1))[1] == (1.0, 0.0)


@pytest.mark.parametrize("cumulative", [(1.0,), (1.0, -2.0), (1.0, math.nan)])
def test_malformed_posts_are_refused(cumulative: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="post of boot-1"):
        absorb(Ledger(width=2), source="boot-1", cumulative=cumulative)


def test_unreadable_ledgers_are_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        ledger_from_dict({"version": 3})
