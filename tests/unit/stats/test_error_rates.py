"""The gate's promises, by simulation: a bad candidate rarely passes, an equal one never fails, coverage is as stated.

Small here, to be quick; `make bench-gate` repeats it at scale and over more kinds of data. Limits are the promised rate
plus three Monte-Carlo standard errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from finetune_stats import corpus
from finetune_stats.compare import compare_metric
from finetune_stats.result import MetricKind, Orientation, PairedResult

ALPHA = 0.025
AT_THE_MARGIN = 150
ELSEWHERE = 40
LIMIT = ALPHA + 3 * (ALPHA * (1 - ALPHA) / AT_THE_MARGIN) ** 0.5

Generator = np.random.Generator
Compare = Callable[[Generator, float], PairedResult]


def grouped(rng: Generator, n: int) -> np.ndarray:
    """Group numbers; about a third of the examples are near-duplicates of another."""
    return np.sort(rng.integers(0, int(1.3 * n), n))


def right_or_wrong(rng: Generator, loss: float) -> PairedResult:
    """n = 400, a tenth of the pairs discordant, members of a group alike (correlation 0.6)."""
    n = 400
    groups = grouped(rng, n)
    shared, own = rng.random(int(1.3 * n))[groups], rng.random(n)
    u = np.where(rng.random(n) < 0.6, shared, own)
    worse, better = (0.1 + loss) / 2, (0.1 - loss) / 2
    step = np.where(u < worse, -1, np.where(u < worse + better, 1, 0))
    baseline = np.where(step == 0, rng.random(n) < 0.75, step < 0).astype(float)
    return compare_metric(
        metric="em",
        kind=MetricKind.PROPORTION,
        candidate=baseline + step,
        baseline=baseline,
        margin=0.04,
        groups=groups,
    )


def per_example_loss(rng: Generator, loss: float) -> PairedResult:
    """n = 250, differences with the tails of Student's t with 3 degrees of freedom."""
    n = 250
    groups = grouped(rng, n)
    baseline = rng.lognormal(0.3, 0.6, n)
    noise = 0.1 * rng.standard_t(3, int(1.3 * n))[groups] + 0.1 * rng.standard_t(3, n)
    return compare_metric(
        metric="loss",
        kind=MetricKind.MEAN,
        candidate=baseline + noise + loss,
        baseline=baseline,
        margin=0.03,
        groups=groups,
        orientation=Orientation.LOWER_IS_BETTER,
    )


def token_perplexity(rng: Generator, loss: float) -> PairedResult:
    """n = 250 answers of very different lengths; the log perplexity is off by `loss`, the true perplexity is 3."""
    n = 250
    tokens = rng.geometric(0.02, n) + 1.0
    rate = np.log(3) + rng.normal(0, 0.4, n)
    worse = rate + rng.normal(0, 0.2, n)
    # The population's perplexity is exp of the mean rate: rates and lengths are independent.
    worse += np.log1p(loss / 3)
    return compare_metric(
        metric="perplexity",
        kind=MetricKind.CORPUS,
        candidate=np.stack([worse * tokens, tokens], axis=1),
        baseline=np.stack([rate * tokens, tokens], axis=1),
        margin=0.1,
        statistic=corpus.perplexity,
        orientation=Orientation.LOWER_IS_BETTER,
    )


@dataclass(frozen=True)
class Rates:
    passes: float
    fails: float
    covered: float


def rates(compare: Compare, *, loss: float, seed: int, repetitions: int) -> Rates:
    rng = np.random.default_rng(seed)
    passes = fails = covered = 0
    for _ in range(repetitions):
        result = compare(rng, loss)
        assert result.low is not None and result.high is not None
        passes += result.low > result.floor
        fails += result.p_loss <= ALPHA
        covered += result.low <= -loss <= result.high
    return Rates(passes=passes / repetitions, fails=fails / repetitions, covered=covered / repetitions)


@pytest.mark.parametrize(
    ("compare", "margin"), [(right_or_wrong, 0.04), (per_example_loss, 0.03), (token_perplexity, 0.1)]
)
def test_true_loss_equal_to_the_margin(compare: Compare, margin: float) -> None:
    found = rates(compare, loss=margin, seed=1, repetitions=AT_THE_MARGIN)
    assert found.passes <= LIMIT
    assert found.fails <= LIMIT
    assert found.covered >= 1 - 2 * LIMIT


@pytest.mark.parametrize("compare", [right_or_wrong, per_example_loss, token_perplexity])
def test_no_difference_is_never_a_proven_loss(compare: Compare) -> None:
    found = rates(compare, loss=0, seed=2, repetitions=ELSEWHERE)
    assert found.fails == 0
    assert found.passes > 0.3


@pytest.mark.parametrize(
    ("compare", "loss"), [(right_or_wrong, 0.09), (per_example_loss, 0.1), (token_perplexity, 0.35)]
)
def test_large_losses_are_proven(compare: Compare, loss: float) -> None:
    found = rates(compare, loss=loss, seed=3, repetitions=ELSEWHERE)
    assert found.passes == 0
    assert found.fails > 0.5
