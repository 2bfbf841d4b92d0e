"""The front door of the offline gate: candidate and baseline scores of one metric in, one `PairedResult` out.

| kind       | candidate, baseline                | interval of the difference                                     |
|------------|------------------------------------|----------------------------------------------------------------|
| proportion | 0 or 1, shape (examples,)          | Tango's score interval, on effective counts if grouped         |
| mean       | numbers, shape (examples,)         | wider of cluster-robust t and BCa; betting if few differ       |
| corpus     | counts, shape (examples, columns)  | wider of jackknife t and BCa over groups, recomputed from sums |
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from finetune_stats.bootstrap import Statistic
from finetune_stats.compare_corpus import compare_corpus
from finetune_stats.compare_mean import ScoreRange, compare_mean
from finetune_stats.compare_proportion import compare_proportion
from finetune_stats.comparison import Finding, Question, Range
from finetune_stats.distributions import FloatArray, IntArray
from finetune_stats.result import Inconclusive, MetricKind, Orientation, PairedResult

FEWEST_GROUPS = 30


def compare_metric(
    *,
    metric: str,
    kind: MetricKind,
    candidate: npt.ArrayLike,
    baseline: npt.ArrayLike,
    margin: float,
    groups: npt.ArrayLike | None = None,
    orientation: Orientation = Orientation.HIGHER_IS_BETTER,
    alpha: float = 0.025,
    seed: int = 0,
    statistic: Statistic | None = None,
    score_range: ScoreRange | None = None,
    threshold: Range | None = None,
) -> PairedResult:
    """Compare two models on the same examples.

    Arguments: `groups`, shape (examples,), any values, equal for near-duplicates (None: each example on its own);
    `margin`, the largest acceptable loss in the metric's unit, negative to demand an improvement; `statistic`, for
    corpus metrics, a function of `finetune_stats.corpus`; `score_range`, for means, the lowest and highest possible
    score, which allows a proof even where hardly any example differs; `threshold`, where the candidate's own value must
    lie; `seed`, of the bootstrap: same seed and data, same result.

    Raises ValueError, naming metric and example, for arrays that do not match, scores that are not finite, proportions
    that are not 0 or 1, scores outside `score_range`.
    """
    first = _checked(metric=metric, role="candidate", kind=kind, scores=candidate, score_range=score_range)
    second = _checked(metric=metric, role="baseline", kind=kind, scores=baseline, score_range=score_range)
    if first.shape != second.shape:
        raise ValueError(f"metric {metric}: candidate has shape {first.shape} but baseline {second.shape}")
    if not (0 < alpha < 0.5 and math.isfinite(margin)):
        raise ValueError(f"metric {metric}: alpha must be in (0, 0.5) and margin finite; got {alpha} and {margin}")
    question = Question(
        groups=_numbered(metric=metric, groups=groups, examples=first.shape[0]),
        margin=margin,
        alpha=alpha,
        sign=orientation.sign,
        threshold=threshold,
        seed=seed,
    )
    match kind:
        case MetricKind.PROPORTION:
            if not -1 < margin < 1:
                raise ValueError(f"metric {metric}: the margin of a proportion must be in (-1, 1); got {margin}")
            found = compare_proportion(candidate=first, baseline=second, question=question)
        case MetricKind.MEAN:
            if score_range is not None and abs(margin) >= score_range[1] - score_range[0]:
                raise ValueError(f"metric {metric}: margin {margin} is as wide as the score range {score_range}")
            found = compare_mean(candidate=first, baseline=second, question=question, score_range=score_range)
        case MetricKind.CORPUS:
            if statistic is None:
                raise ValueError(f"metric {metric}: a corpus metric needs `statistic`, see finetune_stats.corpus")
            found = compare_corpus(candidate=first, baseline=second, question=question, statistic=statistic)
    return _result(metric=metric, kind=kind, orientation=orientation, question=question, found=found)


def _result(
    *, metric: str, kind: MetricKind, orientation: Orientation, question: Question, found: Finding
) -> PairedResult:
    difference, level = found.difference, found.level
    inconclusive, reason, power = difference.inconclusive, difference.reason, difference.power.power
    if question.group_count < FEWEST_GROUPS:
        inconclusive = Inconclusive.TOO_FEW_GROUPS
        reason = f"{question.group_count} independent groups of examples; at least {FEWEST_GROUPS} are needed"
        power = 0.0  # whatever is found among so few, nothing passes
    elif inconclusive is None and question.threshold is not None and level.bounds is None:
        inconclusive = Inconclusive.NO_VARIANCE
        reason = "the candidate's own value does not vary when examples are drawn again; its threshold cannot be judged"
    elif inconclusive is None and question.margin > 0 and _nothing_right(orientation, question=question, found=found):
        inconclusive = Inconclusive.NOTHING_RIGHT
        reason = "both models score 0, so that neither is worse says nothing: do the answers have the references' form?"
    needed = difference.power.needed
    if needed is not None:
        needed = max(needed, math.ceil(question.groups.size * FEWEST_GROUPS / question.group_count))
    low, high = difference.bounds or (None, None)
    candidate_low, candidate_high = level.bounds or (None, None)
    return PairedResult(
        metric=metric,
        kind=kind,
        orientation=orientation,
        method=difference.method,
        candidate=found.candidate,
        baseline=found.baseline,
        difference=difference.difference,
        low=low,
        high=high,
        candidate_low=candidate_low,
        candidate_high=candidate_high,
        n=question.groups.size,
        groups=question.group_count,
        alpha=question.alpha,
        margin=question.margin,
        p_loss=difference.p_loss if inconclusive is None else 1.0,
        p_outside=level.p_outside if inconclusive is None else None,
        inconclusive=inconclusive,
        reason=reason,
        power=power,
        needed_n=needed,
    )


def _nothing_right(orientation: Orientation, *, question: Question, found: Finding) -> bool:
    """Whether both score 0 where more is better. A demand on the candidate's own value that 0 cannot meet speaks for
    itself."""
    least = None if question.threshold is None else question.threshold.minimum
    both = found.candidate == 0 and found.baseline == 0
    return both and orientation is Orientation.HIGHER_IS_BETTER and (least is None or least <= 0)


def _checked(
    *, metric: str, role: str, kind: MetricKind, scores: npt.ArrayLike, score_range: ScoreRange | None
) -> FloatArray:
    values = np.asarray(scores, dtype=np.float64)
    dimensions = 2 if kind is MetricKind.CORPUS else 1
    if values.ndim != dimensions or values.shape[0] == 0:
        raise ValueError(
            f"metric {metric}: {role} has shape {values.shape}; expected {dimensions} axes, examples first"
        )
    wrong = ~np.isfinite(values)
    expected = "finite numbers"
    if kind is MetricKind.PROPORTION:
        wrong, expected = (values != 0) & (values != 1), "0 or 1"
    elif kind is MetricKind.MEAN and score_range is not None:
        wrong, expected = ~((values >= score_range[0]) & (values <= score_range[1])), f"scores in {score_range}"
    if wrong.any():
        position = tuple(int(axis[0]) for axis in np.nonzero(wrong))
        raise ValueError(f"metric {metric}: {role} example {position[0]} is {values[position]}; expected {expected}")
    return values


def _numbered(*, metric: str, groups: npt.ArrayLike | None, examples: int) -> IntArray:
    if groups is None:
        return np.arange(examples)
    labels = np.asarray(groups)
    if labels.shape != (examples,):
        raise ValueError(f"metric {metric}: groups have shape {labels.shape}; expected ({examples},)")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
