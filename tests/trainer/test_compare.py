"""Rows, verdicts and their words on scores made up for the purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.shared_fields import Task
from finetune_stats.verdict import Verdict
from finetune_trainer.evaluation.compare import Comparison, compare, explain, headline
from finetune_trainer.process.errors import StageError
from finetune_trainer.tasks.scores import ClassOutcome, Scores, TextOutcome, score_classes, score_texts


def wanted(name: str, **how: Any) -> EvaluationMetric:
    return EvaluationMetric.model_validate({"name": name, **how})


def answers(right: int, *, n: int = 400, nll: float = 1.0, seed: int = 0) -> Scores:
    """A model that gives the first `right` answers as the reference, with some noise in its likelihoods."""
    noise = np.random.default_rng(seed).normal(0, 0.1, n)
    outcomes = [
        TextOutcome(nll=4 * (nll + float(noise[index])), tokens=4, answer="yes" if index < right else "no idea")
        for index in range(n)
    ]
    return score_texts(outcomes, references=["yes"] * n)


def compared(
    metric: EvaluationMetric | list[EvaluationMetric],
    candidate: Scores,
    baseline: Scores,
    *,
    task: Task = "Chat",
    groups: list[str] | None = None,
) -> Comparison:
    return compare(
        wanted=metric if isinstance(metric, list) else [metric],
        task=task,
        candidate=candidate,
        baseline=baseline,
        groups=groups or [str(index) for index in range(len(candidate.examples))],
        seed=0,
    )


@pytest.mark.parametrize(
    ("metric", "candidate", "baseline", "verdict", "words"),
    [
        (wanted("exact_match", maxRegression=0.01), 350, 200, Verdict.PASS, "proven better"),
        (wanted("exact_match", maxRegression=0.05), 300, 300, Verdict.PASS, "proven no worse than 0.05 allows"),
        (wanted("exact_match", maxRegression=0.01), 200, 350, Verdict.FAIL, "proven worse by more than the 0.01 that"),
        (wanted("exact_match", minImprovement=0.3), 350, 200, Verdict.PASS, "proven better by more than 0.3"),
        (wanted("exact_match", minImprovement=0.5), 350, 200, Verdict.FAIL, "proven to gain less than the 0.5"),
        (wanted("exact_match", minImprovement=0.0), 300, 300, Verdict.INCONCLUSIVE, "a gain of 0 is not proven"),
        (wanted("exact_match", thresholdRange={"min": 0.8}), 380, 399, Verdict.PASS, "proven at or above 0.8"),
        (wanted("exact_match", thresholdRange={"min": 0.8}), 200, 100, Verdict.FAIL, "proven not at or above 0.8"),
        (wanted("exact_match", thresholdRange={"min": 0.8}), 322, 0, Verdict.INCONCLUSIVE, "not proven at or above"),
        (
            wanted("exact_match", maxRegression=0.9, thresholdRange={"min": 0.8, "max": 0.9}),
            250,
            390,
            Verdict.FAIL,
            "proven not between 0.8 and 0.9",
        ),
    ],
)
def test_verdicts(metric: EvaluationMetric, candidate: int, baseline: int, verdict: Verdict, words: str) -> None:
    comparison = compared(metric, answers(candidate), answers(baseline))
    assert comparison.verdict is verdict
    assert words in explain(comparison.rows[0])


def test_a_lower_loss_is_better() -> None:
    comparison = compared(wanted("loss", maxRegression=0.01), answers(9, nll=0.5, seed=1), answers(9, nll=1.0, seed=2))
    row = comparison.rows[0].to_result()
    assert comparison.verdict is Verdict.PASS
    assert row.better == "Lower"
    assert row.difference is not None and row.low is not None and row.high is not None
    assert row.low < row.difference < row.high < 0
    assert row.difference == pytest.approx(-0.5, abs=0.03)
    assert comparison.rows[0].limit == pytest.approx(0.01)


def test_a_higher_loss_is_a_regression() -> None:
    comparison = compared(wanted("loss", maxRegression=0.01), answers(9, nll=1.0, seed=1), answers(9, nll=0.5, seed=2))
    assert comparison.verdict is Verdict.FAIL
    assert "proven worse" in (comparison.rows[0].to_result().reason or "")


def test_perplexity_is_compared_from_sums() -> None:
    candidate, baseline = answers(9, nll=1.0, seed=1), answers(9, nll=2.0, seed=2)
    row = compared(wanted("perplexity", maxRegression=0.1), candidate, baseline).rows[0].to_result()
    assert row.candidate == pytest.approx(np.exp(1.0), rel=0.02)
    assert row.baseline == pytest.approx(np.exp(2.0), rel=0.02)


def test_too_few_groups_prove_nothing_however_many_examples() -> None:
    groups = [str(index % 12) for index in range(400)]
    comparison = compared(wanted("exact_match", maxRegression=0.01), answers(390), answers(10), groups=groups)
    row = comparison.rows[0].to_result()
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert (row.n, row.groups) == (400, 12)
    assert "12 independent groups" in (row.reason or "")


def test_an_inconclusive_row_says_what_would_help() -> None:
    comparison = compared(wanted("exact_match", maxRegression=0.01), answers(76, n=100), answers(78, n=100))
    result = comparison.rows[0].to_result()
    assert headline(comparison, baseline="v1") == (
        f"The evidence is not enough to judge the candidate against v1 on exact_match."
        f" About {result.needed_n:,} examples would do."
    )
    assert result.verdict == "Inconclusive"
    assert result.power is not None and result.power < 0.8
    assert result.needed_n is not None and result.needed_n > 100
    for words in ("cannot be ruled out", "n = 100 in 100 groups", "% of cases at this size", f"{result.needed_n:,}"):
        assert words in (result.reason or "")


def test_a_reported_metric_is_shown_and_not_judged() -> None:
    metrics = [wanted("exact_match", maxRegression=0.01), wanted("loss", report=True)]
    comparison = compared(metrics, answers(350, nll=9.0, seed=1), answers(200, nll=1.0, seed=2))
    assert comparison.verdict is Verdict.PASS
    shown = comparison.rows[1].to_result()
    assert shown.report
    assert shown.verdict is None
    assert shown.power is None


def test_one_proven_loss_fails_the_candidate() -> None:
    metrics = [wanted("exact_match", maxRegression=0.01), wanted("loss", maxRegression=0.01)]
    comparison = compared(metrics, answers(350, nll=2.0, seed=1), answers(200, nll=1.0, seed=2))
    assert comparison.verdict is Verdict.FAIL
    assert comparison.judged(Verdict.FAIL) == ["loss"]
    assert headline(comparison, baseline="Base") == "The candidate is proven unacceptable against Base on loss."


def test_classes_against_a_baseline_with_other_classes() -> None:
    labels = ["a", "b", "new", "old"]
    gold = ["a", "b", "new", "a"] * 50
    guesses = ["b" if index % 10 == 0 else label for index, label in enumerate(gold)]
    good = [ClassOutcome(predicted=guess, nll=0.1, probabilities={guess: 0.9}) for guess in guesses]
    stale = [
        ClassOutcome(predicted="old" if truth == "new" else guess, nll=0.2, probabilities={guess: 0.8})
        for truth, guess in zip(gold, guesses, strict=True)
    ]
    metrics = [wanted("accuracy", maxRegression=0.01), wanted("f1", maxRegression=0.01)]
    comparison = compared(
        metrics,
        score_classes(good, gold=gold, labels=labels),
        score_classes(stale, gold=gold, labels=labels),
        task="SequenceClassification",
    )
    assert comparison.verdict is Verdict.PASS
    assert comparison.rows[0].result.candidate - comparison.rows[0].result.baseline == pytest.approx(0.2)
    assert comparison.rows[1].result.baseline < 0.5


def test_scores_that_are_no_numbers_end_the_stage() -> None:
    with pytest.raises(StageError, match="loss of the candidate is not a number on 1 examples") as caught:
        broken = score_texts([TextOutcome(nll=float("nan"), tokens=3)], references=[None])
        compared(wanted("loss", maxRegression=0.1), broken, broken)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("role", ["candidate", "baseline"])
def test_answers_of_a_model_that_overflows_are_not_judged(role: str) -> None:
    """Also where only answers are compared: against a baseline that can say nothing everybody is better."""
    models = {"candidate": answers(300), "baseline": answers(300)} | {role: answers(0, nll=float("nan"))}
    with pytest.raises(StageError, match=f"loss of the {role} is not a number on 400 examples"):
        compared(wanted("exact_match", maxRegression=0.01), **models)


def test_values_fit_the_termination_message() -> None:
    metrics = [
        wanted(name, maxRegression=0.01) for name in ("loss", "perplexity", "exact_match", "token_f1", "rouge_l")
    ]
    comparison = compared(metrics, answers(201, seed=1), answers(200, seed=2))
    for row in comparison.rows:
        result = row.to_result()
        assert result.candidate == float(f"{result.candidate:.6g}")
        assert len(result.reason or "") <= 400


def test_a_pass_does_not_hide_a_reported_metric_that_got_worse() -> None:
    """One of two classes is given up: accuracy passes within its margin, and macro F1 falls."""
    truth = ["common"] * 380 + ["rare"] * 20
    scored = [
        score_classes(
            [ClassOutcome(predicted=said, nll=0.1, probabilities={}) for said in predicted],
            gold=truth,
            labels=["common", "rare"],
        )
        for predicted in (["common"] * 400, truth)
    ]
    metrics = [wanted("accuracy", maxRegression=0.1), wanted("f1", report=True)]
    found = compared(metrics, scored[0], scored[1], task="SequenceClassification")
    assert found.verdict is Verdict.PASS
    assert found.rows[1].to_result().worse_beyond_chance
    assert headline(found, baseline="Base").endswith("All the same, it is worse beyond chance on accuracy and f1.")
    assert explain(found.rows[1]).endswith("shown, not judged; worse beyond chance")


def test_where_too_few_groups_are_named_no_chance_of_a_pass_is() -> None:
    found = compared(wanted("exact_match", maxRegression=0.9), answers(12, n=12), answers(12, n=12))
    words = explain(found.rows[0])
    assert "at least 30 are needed" in words
    assert "would pass" not in words
    assert found.rows[0].result.power == 0
    assert found.rows[0].result.needed_n is not None and found.rows[0].result.needed_n >= 30
