"""From what a model said to scores: per example for a person, as columns of numbers for the statistics.

The columns of a metric are what `finetune_stats.compare.compare_metric` takes: one number an example for proportions
and means, counts that add up for corpus metrics. Nothing here touches a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from finetune_stats.corpus import label_counts
from finetune_stats.distributions import FloatArray

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

# Scripts without spaces between words: each character counts as a word.
_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")

UNKNOWN_CLASS_PROBABILITY = 1e-6
"""What a model that does not know a class is taken to give it: a baseline that was trained before the class existed."""


@dataclass(frozen=True, kw_only=True)
class TextOutcome:
    """What a language model did with one example."""

    nll: float
    """Summed negative log likelihood of the reference's tokens, in nats."""
    tokens: int
    """How many tokens those are: the answer's with its end mark, or all but the first of a plain text."""
    answer: str | None = None
    """What it generated; None where nothing was to be generated."""

    @property
    def probabilities(self) -> None:
        """Of classes: it has none."""


@dataclass(frozen=True, kw_only=True)
class ClassOutcome:
    """What a classifier did with one example."""

    predicted: str
    nll: float
    """Negative log probability of the right class, in nats."""
    probabilities: dict[str, float]
    """Of the likeliest classes, likeliest first."""

    @property
    def answer(self) -> str:
        """What it says."""
        return self.predicted


Outcome = TextOutcome | ClassOutcome


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one model on all examples."""

    columns: Mapping[str, FloatArray]
    """Metric -> shape (examples,), or (examples, counts) for corpus metrics."""
    examples: Sequence[Mapping[str, float]]
    """For each example the metrics that mean something for one alone."""


def score_texts(
    outcomes: Sequence[TextOutcome], *, references: Sequence[str | None], wanted: Collection[str] = ("rouge_l", "bleu")
) -> Scores:
    """Scores of a language model. `references`: the right answers; None for plain texts, which have a loss only.

    `wanted`: of the metrics that take time on long answers (rouge_l, bleu), those to compute.
    """
    likelihoods = np.array([[outcome.nll, outcome.tokens] for outcome in outcomes], dtype=np.float64)
    columns: dict[str, FloatArray] = {"loss": likelihoods, "perplexity": likelihoods}
    examples: list[dict[str, float]] = [
        {"loss": outcome.nll / outcome.tokens} if outcome.tokens else {} for outcome in outcomes
    ]
    pairs = [
        (outcome.answer, reference)
        for outcome, reference in zip(outcomes, references, strict=True)
        if outcome.answer is not None and reference is not None
    ]
    if len(pairs) < len(outcomes):
        return Scores(columns=columns, examples=examples)
    per_answer = {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge_l}
    for name in ("exact_match", "token_f1", *({"rouge_l"} & set(wanted))):
        columns[name] = np.array([per_answer[name](answer, reference) for answer, reference in pairs], dtype=np.float64)
        for example, value in zip(examples, columns[name], strict=True):
            example[name] = float(value)
    if "bleu" in wanted:
        counts = [bleu_counts(answer, reference) for answer, reference in pairs]
        columns["bleu"] = np.array(counts, dtype=np.float64)
    return Scores(columns=columns, examples=examples)


def score_classes(outcomes: Sequence[ClassOutcome], *, gold: Sequence[str], labels: Sequence[str]) -> Scores:
    """Scores of a classifier. `labels`: the classes of both models of a comparison together, in any order."""
    number = {label: index for index, label in enumerate(labels)}
    predicted = [outcome.predicted for outcome in outcomes]
    loss = np.array([outcome.nll for outcome in outcomes], dtype=np.float64)
    right = np.array([guess == truth for guess, truth in zip(predicted, gold, strict=True)], dtype=np.float64)
    counts = label_counts(
        gold=np.array([number[label] for label in gold]),
        predicted=np.array([number[label] for label in predicted]),
        labels=len(labels),
    )
    return Scores(
        columns={"loss": loss, "accuracy": right, "precision": counts, "recall": counts, "f1": counts},
        examples=[{"loss": float(one), "accuracy": float(two)} for one, two in zip(loss, right, strict=True)],
    )


def class_table(counts: FloatArray, *, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class, from the columns of `f1`; None where a class has nothing to divide by."""
    hits, predicted, gold = (part.sum(axis=0) for part in np.split(counts, 3, axis=1))
    return [
        {
            "label": label,
            "examples": int(gold[index]),
            "predicted": int(predicted[index]),
            "precision": _share(hits[index], predicted[index]),
            "recall": _share(hits[index], gold[index]),
            "f1": _share(2 * hits[index], predicted[index] + gold[index]),
        }
        for index, label in enumerate(labels)
    ]


def exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal but for white space at both ends, else 0."""
    return float(answer.strip() == reference.strip())


def token_f1(answer: str, reference: str) -> float:
    """F1 of the two bags of words (P. Rajpurkar et al., SQuAD, EMNLP 2016), here without dropping English articles.

    Two texts without a word agree (1); a text without a word and one with words share nothing (0).
    """
    ours, theirs = words(answer), words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L's F measure (C.-Y. Lin, ACL workshop 2004), as the package rouge-score computes it, without stemming.

    Words are those of `words`: the package's own tokenizer drops everything but ASCII, so that an answer in Greek or
    Chinese would always score 0. For ASCII text without underscores the two agree.
    """
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def bleu_counts(answer: str, reference: str) -> tuple[float, ...]:
    """One example's share of `finetune_stats.corpus.bleu`, tokenised as sacrebleu does by default (13a, cased)."""
    score = _bleu().sentence_score(answer, [reference])
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits of any script; characters of Chinese and Japanese one by one."""
    return _WORD.findall(text.lower())


@cache
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # more than a second, with nltk: only for who wants it

    class Words:
        """The tokenizer's interface in rouge-score."""

        def tokenize(self, text: str) -> list[str]:
            return words(text)

    return RougeScorer(["rougeL"], tokenizer=Words())


@cache
def _bleu() -> BLEU:
    # effective_order only says that scoring single sentences is meant; the counts do not depend on it.
    return BLEU(effective_order=True)


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
