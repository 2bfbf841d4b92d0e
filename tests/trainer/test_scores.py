"""Scores against the reference libraries, and against cases worked by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

from finetune_stats import corpus
from finetune_trainer.tasks.scores import (
    ClassOutcome,
    TextOutcome,
    bleu_counts,
    class_table,
    exact_match,
    rouge_l,
    score_classes,
    score_texts,
    token_f1,
    words,
)

ENGLISH = """the a cat dog sat on mat hat, that; it's 3.5 well-known U.S. "so" run running fast . end"""


def sentences(seed: int, count: int = 60) -> list[str]:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(ENGLISH.split(), k=draw.randint(1, 12))) for _ in range(count)]
    return [*texts, "", "one\nline more", "  padded  "]


def noisy(texts: list[str], seed: int) -> list[str]:
    """Texts that share some word sequences with the given ones."""
    draw = random.Random(seed)
    return [" ".join(word for word in text.split(" ") if draw.random() > 0.25) for text in texts]


def test_bleu_of_all_examples_is_sacrebleus_corpus_score() -> None:
    references = sentences(1)
    answers = noisy(references, 2)
    counts = np.array([bleu_counts(answer, reference) for answer, reference in zip(answers, references, strict=True)])
    expected = BLEU().corpus_score(answers, [references]).score
    assert 20 < expected < 95
    assert float(corpus.bleu(counts.sum(axis=0))) == pytest.approx(expected, abs=1e-9)


def test_bleu_of_very_short_answers_is_sacrebleus_too() -> None:
    answers, references = ["money", "food", "a b c d e"], ["money", "sports", "a b c d f"]
    counts = np.array([bleu_counts(answer, reference) for answer, reference in zip(answers, references, strict=True)])
    expected = BLEU().corpus_score(answers, [references]).score
    assert float(corpus.bleu(counts.sum(axis=0))) == pytest.approx(expected, abs=1e-9)


def test_rouge_l_is_the_packages_on_english() -> None:
    references = sentences(3)
    reference_scorer = RougeScorer(["rougeL"])
    for answer, reference in zip(noisy(references, 4), references, strict=True):
        expected = reference_scorer.score(reference, answer)["rougeL"].fmeasure
        assert rouge_l(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat", "the cat sat on", 2 * 1.0 * 0.5 / 1.5),
        ("sat the cat", "the cat sat", 2 / 3),
        ("γάτα μαύρη", "γάτα μαύρη", 1.0),
        ("黑猫坐", "黑猫坐下", 2 * 3 / (3 + 4)),
        ("nothing", "alike", 0.0),
        ("", "alike", 0.0),
    ],
)
def test_rouge_l_by_hand(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The cat.", "the CAT", 1.0),
        ("the the cat", "the cat", 2 * 2 / 5),
        ("a b c d", "c d e", 2 * 2 / 7),
        ("x", "y", 0.0),
        ("", "", 1.0),
        ("...", "", 1.0),
        ("", "y", 0.0),
    ],
)
def test_token_f1_by_hand(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [(" money\n", "money", 1.0), ("Money", "money", 0.0), ("money.", "money", 0.0), ("mo ney", "money", 0.0)],
)
def test_exact_match_is_strict_but_for_the_ends(answer: str, reference: str, expected: float) -> None:
    assert exact_match(answer, reference) == expected


def test_words_of_mixed_scripts() -> None:
    assert words("Hello_World: 3.5 straße 日本 abc語") == [
        "hello",
        "world",
        "3",
        "5",
        "straße",
        "日",
        "本",
        "abc",
        "語",
    ]


def test_text_scores_add_up() -> None:
    outcomes = [
        TextOutcome(nll=2.0, tokens=4, answer="money"),
        TextOutcome(nll=9.0, tokens=6, answer="food stuff"),
        TextOutcome(nll=0.0, tokens=0, answer=""),
    ]
    scores = score_texts(outcomes, references=["money", "food", "food"])
    assert float(corpus.token_loss(scores.columns["loss"].sum(axis=0))) == pytest.approx(1.1)
    assert float(corpus.perplexity(scores.columns["perplexity"].sum(axis=0))) == pytest.approx(math.exp(1.1))
    assert scores.columns["exact_match"].tolist() == [1, 0, 0]
    assert scores.columns["token_f1"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert scores.examples[0] == {"loss": 0.5, "exact_match": 1, "token_f1": 1, "rouge_l": 1}
    assert "loss" not in scores.examples[2]


def test_costly_scores_are_computed_only_where_wanted() -> None:
    outcomes = [TextOutcome(nll=2.0, tokens=4, answer="money")]
    assert set(score_texts(outcomes, references=["money"], wanted={"loss"}).columns) == {
        "loss", "perplexity", "exact_match", "token_f1"
    }  # fmt: skip


def test_plain_texts_have_a_loss_only() -> None:
    scores = score_texts([TextOutcome(nll=2.0, tokens=4)], references=[None])
    assert set(scores.columns) == {"loss", "perplexity"}


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c", "d", "e"]])
def test_classification_is_sklearns(labels: list[str]) -> None:
    draw = np.random.default_rng(5)
    probabilities = draw.dirichlet(np.ones(len(labels)), size=80)
    gold = [labels[index] for index in draw.integers(0, len(labels), size=80)]
    predicted = [labels[index] for index in probabilities.argmax(axis=1)]
    outcomes = [
        ClassOutcome(
            predicted=guess, nll=-math.log(row[labels.index(truth)]), probabilities=dict(zip(labels, row, strict=True))
        )
        for guess, truth, row in zip(predicted, gold, probabilities, strict=True)
    ]
    scores = score_classes(outcomes, gold=gold, labels=labels)
    assert scores.columns["accuracy"].mean() == pytest.approx(accuracy_score(gold, predicted))
    assert scores.columns["loss"].mean() == pytest.approx(log_loss(gold, probabilities, labels=labels))
    precision, recall, f1, _ = precision_recall_fscore_support(
        gold, predicted, labels=labels, average="macro", zero_division=0
    )
    counts = scores.columns["f1"].sum(axis=0)
    assert float(corpus.macro_precision(counts)) == pytest.approx(precision)
    assert float(corpus.macro_recall(counts)) == pytest.approx(recall)
    assert float(corpus.macro_f1(counts)) == pytest.approx(f1)

    each = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    table = class_table(scores.columns["f1"], labels=labels)
    assert [row["precision"] for row in table] == pytest.approx(list(each[0]))
    assert [row["recall"] for row in table] == pytest.approx(list(each[1]))
    assert [row["f1"] for row in table] == pytest.approx(list(each[2]))
    assert [row["examples"] for row in table] == each[3].tolist()


def test_a_class_that_nobody_has_or_predicts_has_no_rates() -> None:
    outcome = ClassOutcome(predicted="a", nll=0.1, probabilities={"a": 0.9})
    scores = score_classes([outcome], gold=["a"], labels=["a", "b"])
    assert class_table(scores.columns["f1"], labels=["a", "b"])[1] == {
        "label": "b", "examples": 0, "predicted": 0, "precision": None, "recall": None, "f1": None
    }  # fmt: skip
