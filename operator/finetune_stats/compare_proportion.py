"""Compare two right/wrong rates: see `finetune_stats.paired_proportions` for the method and its sources."""

from __future__ import annotations

import math

from finetune_stats.comparison import DifferenceFound, Finding, LevelFound, Question, p_value_outside
from finetune_stats.distributions import FloatArray, normal_cdf
from finetune_stats.paired_proportions import (
    count_pairs,
    design_effect,
    p_value_of_loss,
    tango_interval,
    wilson_interval,
)
from finetune_stats.power import proportion_power
from finetune_stats.result import Method


def compare_proportion(*, candidate: FloatArray, baseline: FloatArray, question: Question) -> Finding:
    """Zeros and ones, shape (examples,). Needs no variance: defined even where the models never differ."""
    # Where lower is better (a rate of toxic answers), 0 takes the part of "right".
    better, worse = (candidate, baseline) if question.sign > 0 else (1 - candidate, 1 - baseline)
    counts = count_pairs(candidate=better, baseline=worse)
    effect = design_effect(values=better - worse, groups=question.groups)
    effective = counts.divided_by(design_effect=effect)
    difference = DifferenceFound(
        method=Method.TANGO if question.group_count == candidate.size else Method.TANGO_RAO_SCOTT,
        difference=counts.difference,
        bounds=tango_interval(counts=effective, alpha=question.alpha),
        p_loss=p_value_of_loss(counts=effective, margin=question.margin),
        power=proportion_power(counts=counts, design_effect=effect, margin=question.margin, alpha=question.alpha),
    )
    return Finding(
        candidate=float(candidate.mean()),
        baseline=float(baseline.mean()),
        difference=difference,
        level=_level(candidate=candidate, question=question),
    )


def _level(*, candidate: FloatArray, question: Question) -> LevelFound:
    """Wilson's interval, and the score test that it inverts."""
    n = candidate.size / design_effect(values=candidate, groups=question.groups)
    rate = float(candidate.mean())

    def p_below(limit: float) -> float:
        if not 0 < limit < 1:
            return 1.0 if rate >= limit else 0.0
        return normal_cdf((rate - limit) / math.sqrt(limit * (1 - limit) / n))

    def p_above(limit: float) -> float:
        if not 0 < limit < 1:
            return 1.0 if rate <= limit else 0.0
        return normal_cdf((limit - rate) / math.sqrt(limit * (1 - limit) / n))

    return LevelFound(
        bounds=wilson_interval(successes=rate * n, n=n, alpha=question.alpha),
        p_outside=p_value_outside(threshold=question.threshold, p_below=p_below, p_above=p_above),
    )
