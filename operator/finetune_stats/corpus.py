"""Corpus metrics as functions of summed per-example counts, so that groups of examples can be resampled.

Each function maps counts of shape (..., columns) to values of shape (...). Counts of examples add up; the metric of a
sample is the function of the sum (P. Koehn, EMNLP 2004). Undefined values are nan.
"""

from __future__ import annotations

import numpy as np

from finetune_stats.distributions import FloatArray, IntArray

BLEU_ORDER = 4


def bleu(counts: FloatArray) -> FloatArray:
    """Corpus BLEU on a scale of 0 to 100, equal to sacrebleu's corpus score with its default smoothing ("exp").

    K. Papineni et al., ACL 2002; M. Post, "A call for clarity in reporting BLEU scores", WMT 2018.

    Columns: clipped n-gram matches for n = 1..4, hypothesis n-grams for n = 1..4, hypothesis length, reference length.
    """
    matches = counts[..., :BLEU_ORDER]
    totals = counts[..., BLEU_ORDER : 2 * BLEU_ORDER]
    hypothesis, reference = counts[..., -2], counts[..., -1]
    # The k-th order without a match counts as 1 / 2^k matches.
    halvings = np.cumsum((matches == 0) & (totals > 0), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothed = np.where(matches > 0, matches, 0.5**halvings)
        precision = np.log(smoothed / totals).mean(axis=-1)
        brevity = np.where(hypothesis < reference, np.exp(1 - reference / hypothesis), 1.0)
        score = 100 * brevity * np.exp(precision)
    nothing = (totals <= 0).any(axis=-1) | (hypothesis <= 0) | (matches <= 0).all(axis=-1)
    return np.asarray(np.where(nothing, 0.0, score), dtype=np.float64)


def perplexity(counts: FloatArray) -> FloatArray:
    """exp(summed negative log likelihood / tokens); columns (nll in nats, tokens).

    Capped at e^100, so that a model that diverged has a number that can be subtracted and is far worse than any other.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.exp(np.minimum(counts[..., 0] / counts[..., 1], 100.0)), dtype=np.float64)


def token_loss(counts: FloatArray) -> FloatArray:
    """Summed negative log likelihood / tokens; columns (nll in nats, tokens). The loss that training reports."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(counts[..., 0] / counts[..., 1], dtype=np.float64)


def label_counts(*, gold: IntArray, predicted: IntArray, labels: int) -> FloatArray:
    """Per-example counts for precision, recall and F1: shape (examples, 3 * labels), for each label hit/predicted/gold.

    `gold` and `predicted`, shape (examples,), hold label numbers 0..labels-1; a prediction of -1 is "no valid label".
    For a binary metric of one positive label, number that label 0, every other label -1 in both arrays, and labels=1.
    """
    if gold.shape != predicted.shape:
        raise ValueError(f"gold and predicted differ in shape: {gold.shape} and {predicted.shape}")
    if max(int(gold.max()), int(predicted.max())) >= labels or min(int(gold.min()), int(predicted.min())) < -1:
        raise ValueError(f"label numbers must be -1 (none) or 0..{labels - 1}")
    columns = np.arange(labels)
    is_gold = gold[:, None] == columns
    is_predicted = predicted[:, None] == columns
    return np.concatenate([is_gold & is_predicted, is_predicted, is_gold], axis=1).astype(np.float64)


def macro_f1(counts: FloatArray) -> FloatArray:
    """Unweighted mean of the labels' F1, over labels that occur in the (re)sample as gold or prediction."""
    hits, predicted, gold = _thirds(counts)
    return _mean_over_present(2 * hits, predicted + gold, present=predicted + gold > 0)


def macro_precision(counts: FloatArray) -> FloatArray:
    """Unweighted mean of the labels' precision; a label never predicted counts 0."""
    hits, predicted, gold = _thirds(counts)
    return _mean_over_present(hits, predicted, present=predicted + gold > 0)


def macro_recall(counts: FloatArray) -> FloatArray:
    """Unweighted mean of the labels' recall; a label that is predicted but never gold counts 0."""
    hits, predicted, gold = _thirds(counts)
    return _mean_over_present(hits, gold, present=predicted + gold > 0)


def _thirds(counts: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    labels = counts.shape[-1] // 3
    return counts[..., :labels], counts[..., labels : 2 * labels], counts[..., 2 * labels :]


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0), dtype=np.float64)


def _mean_over_present(part: FloatArray, whole: FloatArray, *, present: np.ndarray) -> FloatArray:
    return _ratio((_ratio(part, whole) * present).sum(axis=-1), present.sum(axis=-1).astype(np.float64))
