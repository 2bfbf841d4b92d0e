"""The same version is not called a regression, and one that is worse in any of ten ways is (simulated; 200 rollouts:
`python -m tests.bench.same_versions`)."""

from __future__ import annotations

import random

import pytest
from tests.bench.same_versions import WORSE, healthy, rollout

from finetune_api.routes import Judging
from finetune_gateway.tally import Tally, User
from finetune_stats.eprocess import TwoRateState, update
from finetune_stats.two_rates import ArmCounts, Block


@pytest.mark.parametrize(("seed", "slowness"), [(29, 4.0), (179, 4.0), (195, 0.2)])
def test_the_same_version_is_no_regression(seed: int, slowness: float) -> None:
    # With stable's rate as it was seen for a limit, each of these was rolled back under guard.
    assert rollout(healthy, seed=seed, slowness=slowness) is None


@pytest.mark.parametrize("way", WORSE)
def test_a_worse_version_is_found(way: str) -> None:
    assert rollout(WORSE[way], seed=1, slowness=1.0) is not None


def called_a_regression(*, seed: int, users: int = 10, requests: int = 2000) -> bool:
    """A step at half of a few users, of whom some have slow answers more often than not, with either version."""
    rng, tally = random.Random(seed), Tally(endpoint="router", gateway="g")
    team = [(rng.random() < 0.5, 0.6 if rng.random() < 0.2 else 0.02) for _ in range(users)]
    state = TwoRateState(alpha=0.05 / 12, margin=0.05)
    counts = {True: [0, 0], False: [0, 0]}
    for number in range(1, requests + 1):
        user = rng.randrange(users)
        by_candidate, slow = team[user]
        who = User(source="10.0.0.1", has_key=True, name=str(user))
        counted, _ = tally.weigh(
            since=1, variant=str(by_candidate), user=who, cap=Judging().user_weight_cap, now=float(number)
        )
        if counted:
            counts[by_candidate][0] += rng.random() < slow
            counts[by_candidate][1] += 1
        if number % 20 == 0:
            candidate, stable = (ArmCounts(bad=bad, total=total) for bad, total in (counts[True], counts[False]))
            state = update(state, Block(candidate=candidate, stable=stable))
            counts = {True: [0, 0], False: [0, 0]}
    return state.proves_loss


def test_a_few_users_who_differ_are_no_regression() -> None:
    assert sum(called_a_regression(seed=seed) for seed in range(60)) <= 1
