"""Compare two corpus metrics by resampling groups and recomputing from summed counts (Koehn 2004)."""

from __future__ import annotations

import math

import numpy as np

from finetune_stats.bootstrap import BcaDistribution, Statistic, bca_distribution, resample, sum_by_group
from finetune_stats.comparison import (
    FEWEST_DIFFERING_GROUPS,
    DifferenceFound,
    Finding,
    LevelFound,
    Question,
    differing_groups,
    few_differences,
    p_value_outside,
    wider,
)
from finetune_stats.distributions import FloatArray
from finetune_stats.paired_means import ClusteredMean
from finetune_stats.result import Method


def compare_corpus(*, candidate: FloatArray, baseline: FloatArray, question: Question, statistic: Statistic) -> Finding:
    """Counts, shape (examples, columns). Raises ValueError where the metric of the whole sample is undefined."""
    columns = candidate.shape[1]
    per_group = sum_by_group(counts=np.concatenate([candidate, baseline], axis=1), groups=question.groups)
    resampling = resample(group_counts=per_group, seed=question.seed)

    def own_value(counts: FloatArray) -> FloatArray:
        return statistic(counts[..., :columns])

    def better_by(counts: FloatArray) -> FloatArray:
        return question.sign * (statistic(counts[..., :columns]) - statistic(counts[..., columns:]))

    values = float(own_value(resampling.whole)), float(statistic(resampling.whole[columns:]))
    if not (math.isfinite(values[0]) and math.isfinite(values[1])):
        raise ValueError(f"the corpus metric is {values[0]} (candidate) and {values[1]} (baseline): are there tokens?")
    estimate = question.sign * (values[0] - values[1])
    differing = differing_groups(question=question, differs=(candidate != baseline).any(axis=1))
    if differing < FEWEST_DIFFERING_GROUPS:
        difference = few_differences(difference=estimate, differing=differing, question=question)
    else:
        without_one = better_by(resampling.without_one)
        difference = wider(
            unjudged=DifferenceFound(method=Method.JACKKNIFE_AND_BCA, difference=estimate),
            t=_jackknife(estimate=estimate, without_one=without_one),
            bca=bca_distribution(resampling=resampling, statistic=better_by),
            influence=without_one,
            differing=differing,
            question=question,
        )
    own = bca_distribution(resampling=resampling, statistic=own_value)
    return Finding(
        candidate=values[0],
        baseline=values[1],
        difference=difference,
        level=LevelFound() if own is None else _level(own=own, question=question),
    )


def _jackknife(*, estimate: float, without_one: FloatArray) -> ClusteredMean | None:
    """The delete-one-group jackknife's standard error (R. G. Miller, Biometrika 61 (1974) 1-15)."""
    groups = without_one.size
    spread = float(np.sum((without_one - without_one.mean()) ** 2))
    if groups < 2 or not 0 < spread < math.inf:
        return None
    error = math.sqrt((groups - 1) / groups * spread)
    return ClusteredMean(mean=estimate, standard_error=error, degrees_of_freedom=groups - 1)


def _level(*, own: BcaDistribution, question: Question) -> LevelFound:
    return LevelFound(
        bounds=(own.bound(probability=question.alpha), own.bound(probability=1 - question.alpha)),
        p_outside=p_value_outside(
            threshold=question.threshold,
            p_below=lambda limit: own.p_value_below(value=limit),
            p_above=lambda limit: 1 - own.p_value_below(value=limit),
        ),
    )
