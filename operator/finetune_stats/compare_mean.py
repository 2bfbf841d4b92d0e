"""Compare two mean scores: cluster-robust t and BCa, or betting where hardly any example differs.

The betting interval needs to know the range of the scores. It is wider, but exact for every distribution and sample
size, and it can prove that a model which differs from its baseline on three of 2,000 examples is no worse; an interval
built on the variance of three differences cannot.
"""

from __future__ import annotations

import math

import numpy as np

from finetune_stats.betting import fixed_sample_bounds, fixed_sample_p_value
from finetune_stats.bootstrap import bca_distribution, resample, sum_by_group, summed
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
from finetune_stats.paired_means import clustered_mean
from finetune_stats.power import UNKNOWN, Power, assumed_difference
from finetune_stats.result import Method

ScoreRange = tuple[float, float]
"""Lowest and highest possible score."""


def compare_mean(
    *, candidate: FloatArray, baseline: FloatArray, question: Question, score_range: ScoreRange | None
) -> Finding:
    """Scores, shape (examples,). Without `score_range`, few differing examples make the finding inconclusive."""
    better_by = question.sign * (candidate - baseline)
    differing = differing_groups(question=question, differs=better_by != 0)
    if differing >= FEWEST_DIFFERING_GROUPS:
        difference = _by_t_and_bca(better_by=better_by, differing=differing, question=question)
    elif score_range is not None:
        difference = _by_betting(better_by=better_by, question=question, width=score_range[1] - score_range[0])
    else:
        difference = few_differences(difference=float(better_by.mean()), differing=differing, question=question)
    return Finding(
        candidate=float(candidate.mean()),
        baseline=float(baseline.mean()),
        difference=difference,
        level=_level(scores=candidate, question=question, score_range=score_range),
    )


def _by_t_and_bca(*, better_by: FloatArray, differing: int, question: Question) -> DifferenceFound:
    mean = float(better_by.mean())
    per_group = sum_by_group(counts=np.stack([better_by, np.ones_like(better_by)], axis=1), groups=question.groups)
    return wider(
        unjudged=DifferenceFound(method=Method.T_AND_BCA, difference=mean),
        t=clustered_mean(values=better_by, groups=question.groups),
        bca=bca_distribution(
            resampling=resample(group_counts=per_group, seed=question.seed),
            statistic=lambda sums: sums[..., 0] / sums[..., 1],
        ),
        influence=per_group[:, 0] - mean * per_group[:, 1],
        differing=differing,
        question=question,
    )


def _by_betting(*, better_by: FloatArray, question: Question, width: float) -> DifferenceFound:
    sums = summed(values=better_by / width, groups=question.groups)
    sizes = np.bincount(question.groups).astype(np.float64)
    low, high = fixed_sample_bounds(group_sums=sums, group_sizes=sizes, alpha=question.alpha)
    return DifferenceFound(
        method=Method.BETTING,
        difference=float(better_by.mean()),
        bounds=(low * width, high * width),
        p_loss=fixed_sample_p_value(group_sums=sums, group_sizes=sizes, mean=-question.margin / width),
        power=_betting_power(difference=float(better_by.mean()), low=low * width, question=question),
    )


def _betting_power(*, difference: float, low: float, question: Question) -> Power:
    """With hardly any variance the interval shrinks with 1/n, not with its root. The power has no simple form."""
    distance = assumed_difference(observed=difference, margin=question.margin) + question.margin
    if distance <= 0:
        return UNKNOWN
    return Power(power=None, needed=math.ceil(question.groups.size * (difference - low) / distance))


def _level(*, scores: FloatArray, question: Question, score_range: ScoreRange | None) -> LevelFound:
    mean = clustered_mean(values=scores, groups=question.groups)
    if mean is not None:
        return LevelFound(
            bounds=mean.bounds(alpha=question.alpha),
            p_outside=p_value_outside(
                threshold=question.threshold,
                p_below=lambda limit: mean.p_value_below(value=limit),
                p_above=lambda limit: 1 - mean.p_value_below(value=limit),
            ),
        )
    if score_range is None:
        return LevelFound()
    middle, half = (score_range[0] + score_range[1]) / 2, (score_range[1] - score_range[0]) / 2
    sums = summed(values=(scores - middle) / half, groups=question.groups)
    sizes = np.bincount(question.groups).astype(np.float64)
    low, high = fixed_sample_bounds(group_sums=sums, group_sizes=sizes, alpha=question.alpha)
    return LevelFound(
        bounds=(middle + half * low, middle + half * high),
        p_outside=p_value_outside(
            threshold=question.threshold,
            p_below=lambda limit: fixed_sample_p_value(
                group_sums=sums, group_sizes=sizes, mean=(limit - middle) / half
            ),
            p_above=lambda limit: fixed_sample_p_value(
                group_sums=-sums, group_sizes=sizes, mean=(middle - limit) / half
            ),
        ),
    )
