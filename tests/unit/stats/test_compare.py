"""The front door: orientation, groups, degenerate data, thresholds and refusals, for each kind of metric."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from finetune_stats import corpus
from finetune_stats.compare import compare_metric
from finetune_stats.comparison import Range
from finetune_stats.result import Inconclusive, Method, MetricKind, Orientation, PairedResult
from finetune_stats.verdict import MetricRow, Verdict, judge

RNG = np.random.default_rng(20)
RIGHT = (RNG.random(400) < 0.8).astype(float)
OTHER = np.where(RNG.random(400) < 0.85, RIGHT, 1 - RIGHT)
LOSS = RNG.lognormal(0, 0.5, 400)
TOKENS = RNG.integers(5, 80, 400).astype(float)
GOLD = RNG.integers(0, 6, 400)
LABELS = np.where(RNG.random(400) < 0.8, GOLD, RNG.integers(0, 6, 400))


def labels(predicted: np.ndarray) -> np.ndarray:
    return corpus.label_counts(gold=GOLD, predicted=predicted, labels=6)


CASES: dict[str, dict[str, object]] = {
    "proportion": {"kind": MetricKind.PROPORTION, "candidate": RIGHT, "baseline": OTHER, "margin": 0.02},
    "mean": {"kind": MetricKind.MEAN, "candidate": LOSS + RNG.normal(0, 0.1, 400), "baseline": LOSS, "margin": 0.02},
    "corpus": {
        "kind": MetricKind.CORPUS,
        "candidate": np.stack([(LOSS + RNG.normal(0, 0.1, 400)) * TOKENS, TOKENS], axis=1),
        "baseline": np.stack([LOSS * TOKENS, TOKENS], axis=1),
        "margin": 0.1,
        "statistic": corpus.perplexity,
    },
}


def compare(name: str, **changed: object) -> PairedResult:
    return compare_metric(**{"metric": name, **CASES[name], **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_lower_is_better_mirrors_higher_is_better(name: str) -> None:
    higher = compare(name)
    lower = compare(name, orientation=Orientation.LOWER_IS_BETTER)
    assert lower.difference == pytest.approx(-higher.difference)
    assert (lower.low, lower.high) == pytest.approx((-higher.high, -higher.low), rel=0.02)
    assert (lower.candidate, lower.candidate_low) == (higher.candidate, higher.candidate_low)


@pytest.mark.parametrize("name", CASES)
def test_positive_difference_means_the_candidate_is_better(name: str) -> None:
    improved = {
        "proportion": np.maximum(RIGHT, OTHER),
        "mean": LOSS - 0.1 - RNG.normal(0, 0.01, 400),
        "corpus": np.stack([LOSS * TOKENS * RNG.uniform(0.7, 0.9, 400), TOKENS], axis=1),
    }[name]
    orientation = Orientation.HIGHER_IS_BETTER if name == "proportion" else Orientation.LOWER_IS_BETTER
    found = compare(name, candidate=improved, orientation=orientation)
    assert found.low is not None and found.low > 0
    assert found.p_loss > 0.99


@pytest.mark.parametrize("name", CASES)
def test_same_seed_same_row(name: str) -> None:
    assert compare(name, seed=5) == compare(name, seed=5)


@pytest.mark.parametrize("name", CASES)
def test_repeating_each_example_adds_no_information(name: str) -> None:
    """Every example four times, as near-duplicates: interval and p-value stay (nearly) what they were."""
    once = compare(name)
    repeated = compare(
        name,
        candidate=np.repeat(np.asarray(CASES[name]["candidate"]), 4, axis=0),
        baseline=np.repeat(np.asarray(CASES[name]["baseline"]), 4, axis=0),
        groups=np.repeat(np.arange(400), 4),
    )
    assert (repeated.n, repeated.groups) == (1600, 400)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), rel=0.01, abs=1e-3)
    assert repeated.p_loss == pytest.approx(once.p_loss, abs=0.02)


@pytest.mark.parametrize("name", CASES)
def test_interval_and_p_value_tell_the_same_story(name: str) -> None:
    """Proven loss at the margin if and only if the whole interval lies below it."""
    first = compare(name)
    assert first.high is not None
    assert compare(name, margin=-first.high - 1e-3).p_loss < 0.025
    assert compare(name, margin=-first.high + 1e-3).p_loss > 0.025


@pytest.mark.parametrize("name", CASES)
def test_too_few_groups_prove_nothing(name: str) -> None:
    found = compare(name, groups=np.arange(400) % 29)
    assert found.inconclusive is Inconclusive.TOO_FEW_GROUPS
    assert found.p_loss == 1
    assert "29" in found.reason


def test_groups_may_have_any_names() -> None:
    names = np.array([f"cluster-{i // 2}" for i in range(400)])
    assert compare("proportion", groups=names) == compare("proportion", groups=np.arange(400) // 2)
    assert compare("proportion", groups=names).method is Method.TANGO_RAO_SCOTT


def test_proportions_without_any_difference_still_have_an_interval() -> None:
    found = compare("proportion", baseline=RIGHT)
    assert found.inconclusive is None
    assert found.low is not None and -0.02 < found.low < 0


@pytest.mark.parametrize("name", ["mean", "corpus"])
def test_identical_scores_have_no_variance(name: str) -> None:
    found = compare(name, baseline=CASES[name]["candidate"])
    assert found.inconclusive is Inconclusive.NO_VARIANCE
    assert (found.low, found.high, found.method) == (None, None, Method.NONE)


@pytest.mark.parametrize("name", ["mean", "corpus"])
def test_a_handful_of_differences_is_not_a_variance(name: str) -> None:
    candidate = np.array(CASES[name]["baseline"], copy=True)
    candidate[:19] *= 1.1
    assert compare(name, candidate=candidate).inconclusive is Inconclusive.TOO_FEW_DIFFERENCES
    candidate[19] *= 1.1
    assert compare(name, candidate=candidate).inconclusive is None


def test_bounded_scores_are_proven_by_betting_when_hardly_any_differ() -> None:
    baseline = np.random.default_rng(3).uniform(size=2000)
    candidate = baseline.copy()
    candidate[:3] -= 0.5 * candidate[:3]
    found = compare("mean", candidate=candidate, baseline=baseline, margin=0.01, score_range=(0.0, 1.0))
    assert found.method is Method.BETTING
    assert found.low is not None and -0.01 < found.low < found.difference
    same = compare("mean", candidate=baseline, baseline=baseline, margin=0.01, score_range=(0.0, 1.0))
    assert same.inconclusive is None and same.low is not None and same.low > -0.01


def test_rare_big_losses_do_not_pass() -> None:
    """1 % of the answers lose everything, the margin is 1 %: t alone would pass about an eighth of such candidates."""
    rng = np.random.default_rng(4)
    passes = 0
    for _ in range(200):
        baseline = np.ones(500)
        candidate = np.where(rng.random(500) < 0.01, 0.0, 1.0)
        found = compare("mean", candidate=candidate, baseline=baseline, margin=0.01, score_range=(0.0, 1.0))
        passes += found.low is not None and found.low > -0.01
    assert passes / 200 <= 0.05


@pytest.mark.parametrize(
    ("name", "changed", "limit", "is_outside"),
    [
        ("proportion", {}, Range(minimum=0.5), False),
        ("proportion", {}, Range(minimum=0.95), True),
        ("proportion", {}, Range(maximum=0.5), True),
        ("mean", {}, Range(maximum=3.0), False),
        ("mean", {}, Range(minimum=0.5, maximum=0.9), True),
        ("mean", {"candidate": np.zeros(400), "score_range": (0.0, 9.0)}, Range(maximum=1.0), False),
        ("mean", {"candidate": np.zeros(400), "score_range": (0.0, 9.0)}, Range(minimum=1.0), True),
        ("corpus", {}, Range(maximum=10.0), False),
        ("corpus", {}, Range(maximum=2.0), True),
    ],
)
def test_threshold_on_the_candidates_own_value(
    name: str, changed: dict[str, object], limit: Range, is_outside: bool
) -> None:
    found = compare(name, threshold=limit, **changed)
    assert found.p_outside is not None
    assert (found.p_outside < 0.001) is is_outside
    assert found.candidate_low is not None and found.candidate_high is not None
    assert found.candidate_low <= found.candidate <= found.candidate_high


def test_threshold_without_variance_is_inconclusive() -> None:
    found = compare("mean", candidate=np.zeros(400), threshold=Range(maximum=1.0))
    assert found.inconclusive is Inconclusive.NO_VARIANCE
    assert "threshold" in found.reason


def test_rows_are_json_friendly() -> None:
    for name in CASES:
        values = dataclasses.asdict(compare(name)).values()
        assert all(isinstance(value, str | int | float | type(None)) for value in values)
        assert not any(isinstance(value, np.generic) for value in values)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("proportion", {"candidate": np.full(400, 0.5)}, "candidate example 0 is 0.5; expected 0 or 1"),
        ("mean", {"baseline": np.where(np.arange(400) == 7, np.nan, LOSS)}, "baseline example 7 is nan"),
        ("mean", {"baseline": LOSS[:-1]}, "candidate has shape"),
        ("mean", {"groups": np.arange(3)}, "groups have shape"),
        ("mean", {"score_range": (0.0, 0.5)}, "expected scores in"),
        ("mean", {"margin": float("nan")}, "margin finite"),
        ("mean", {"candidate": np.zeros((4, 2))}, "expected 1 axes"),
        ("mean", {"candidate": np.array([]), "baseline": np.array([])}, "expected 1 axes"),
        ("proportion", {"margin": 1.0}, "margin of a proportion"),
        ("corpus", {"statistic": None}, "needs `statistic`"),
        ("corpus", {"candidate": np.zeros((400, 2))}, "are there tokens"),
    ],
)
def test_refusals_name_the_metric_and_the_reason(name: str, changed: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(name, **changed)


@pytest.mark.parametrize("limits", [{}, {"minimum": 2.0, "maximum": 1.0}])
def test_empty_ranges_do_not_construct(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="threshold range"):
        Range(**limits)


@pytest.mark.parametrize("kind", [MetricKind.PROPORTION, MetricKind.MEAN])
def test_nothing_right_on_either_side_is_no_success(kind: MetricKind) -> None:
    """Two models whose answers never match a reference are equally good at nothing."""
    zeros, limits = np.zeros(200), (0.0, 1.0) if kind is MetricKind.MEAN else None
    found = compare_metric(metric="m", kind=kind, candidate=zeros, baseline=zeros, margin=0.1, score_range=limits)
    verdict = judge([MetricRow(result=found)])
    assert verdict.verdict is Verdict.INCONCLUSIVE
    assert "both models score 0" in verdict.reason


def test_a_demand_that_nothing_right_cannot_meet_still_fails() -> None:
    zeros, threshold = np.zeros(200), Range(minimum=0.5)
    for margin, limits in ((0.1, threshold), (-0.1, None)):
        found = compare_metric(
            metric="m", kind=MetricKind.PROPORTION, candidate=zeros, baseline=zeros, margin=margin, threshold=limits
        )
        assert judge([MetricRow(result=found, threshold=limits)]).verdict is Verdict.FAIL
