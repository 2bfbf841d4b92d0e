"""Corpus metrics from counts against sacrebleu and scikit-learn on the same examples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from finetune_stats import corpus

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("a dog barked at the tall man", "the dog barked at a very tall man"),
    ("nothing in common here", "completely different words appear instead"),
    ("short", "short answer"),
    ("it rains and it rains and it rains", "it rains and it snows and it rains again"),
]


@pytest.fixture(scope="module")
def metrics() -> Any:
    """Imported by whoever runs these tests, not by all who collect them: it takes a second."""
    from sklearn import metrics

    return metrics


def bleu_counts(hypothesis: str, reference: str) -> list[int]:
    h, r = hypothesis.split(), reference.split()
    matches, totals = [], []
    for order in range(1, 5):
        mine = Counter(tuple(h[i : i + order]) for i in range(len(h) - order + 1))
        theirs = Counter(tuple(r[i : i + order]) for i in range(len(r) - order + 1))
        matches.append(sum((mine & theirs).values()))
        totals.append(sum(mine.values()))
    return [*matches, *totals, len(h), len(r)]


@pytest.mark.parametrize(
    "chosen", [[0], [1], [2], [3], [0, 1], [1, 2, 3], [1, 4], [2, 3], [0, 1, 2, 3, 4], [1, 1, 4, 3]]
)
def test_bleu_equals_sacrebleu(chosen: list[int]) -> None:
    import sacrebleu

    pairs = [PAIRS[i] for i in chosen]
    sums = np.array([bleu_counts(h, r) for h, r in pairs], dtype=np.float64).sum(axis=0)
    reference = sacrebleu.corpus_bleu([h for h, _ in pairs], [[r for _, r in pairs]], tokenize="none")
    assert float(corpus.bleu(sums)) == pytest.approx(reference.score, abs=1e-9)


def test_bleu_of_a_stack_of_samples_is_the_stack_of_bleus() -> None:
    counts = np.array([bleu_counts(h, r) for h, r in PAIRS], dtype=np.float64)
    assert corpus.bleu(counts).tolist() == [float(corpus.bleu(row)) for row in counts]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (corpus.macro_f1, "f1_score"),
        (corpus.macro_precision, "precision_score"),
        (corpus.macro_recall, "recall_score"),
    ],
)
def test_label_metrics_equal_scikit_learn(seed: int, ours, theirs: str, metrics: Any) -> None:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 9, 25)  # small: some labels are absent
    predicted = np.where(rng.random(25) < 0.6, gold, rng.integers(0, 12, 25))
    counts = corpus.label_counts(gold=gold, predicted=predicted, labels=12)
    expected = getattr(metrics, theirs)(gold, predicted, average="macro", zero_division=0)
    assert float(ours(counts.sum(axis=0))) == pytest.approx(expected)


def test_binary_metric_of_the_positive_label(metrics: Any) -> None:
    gold = np.array([0, 0, 0, -1, -1, -1])
    predicted = np.array([0, -1, 0, 0, -1, -1])
    sums = corpus.label_counts(gold=gold, predicted=predicted, labels=1).sum(axis=0)
    expected = metrics.f1_score(gold == 0, predicted == 0)
    assert float(corpus.macro_f1(sums)) == pytest.approx(expected)


def test_an_answer_that_is_no_label_costs_recall_only() -> None:
    sums = corpus.label_counts(gold=np.array([0, 1]), predicted=np.array([0, -1]), labels=2).sum(axis=0)
    hits, predicted, gold = sums.reshape(3, 2).tolist()
    assert (hits, predicted, gold) == ([1, 0], [1, 0], [1, 1])


def test_perplexity_weighs_by_tokens_and_survives_divergence() -> None:
    sums = np.array([[2.0, 10], [30.0, 20]]).sum(axis=0)
    assert float(corpus.perplexity(sums)) == pytest.approx(np.exp(32 / 30))
    assert float(corpus.token_loss(sums)) == pytest.approx(32 / 30)
    assert np.isfinite(corpus.perplexity(np.array([1e9, 3.0])))


@pytest.mark.parametrize(("gold", "predicted"), [([0, 3], [0, 1]), ([0, 1], [0, -2])])
def test_unknown_labels_are_refused(gold: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match="label numbers"):
        corpus.label_counts(gold=np.array(gold), predicted=np.array(predicted), labels=3)
