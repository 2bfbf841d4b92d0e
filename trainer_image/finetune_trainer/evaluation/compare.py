"""Candidate against baseline on the same examples: one row a metric, the verdict, and both in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.metrics import Metric, metrics_of
from finetune_api.shared_fields import MetricResult, Task
from finetune_stats import corpus
from finetune_stats.bootstrap import Statistic
from finetune_stats.compare import compare_metric
from finetune_stats.comparison import Range
from finetune_stats.result import MetricKind, Orientation, PairedResult
from finetune_stats.verdict import MetricRow, MetricVerdict, Verdict, judge, required_margin
from finetune_trainer.process.errors import bad_data
from finetune_trainer.tasks.scores import Scores

_STATISTICS: Mapping[str, Statistic] = {
    "loss": corpus.token_loss,
    "perplexity": corpus.perplexity,
    "bleu": corpus.bleu,
    "precision": corpus.macro_precision,
    "recall": corpus.macro_recall,
    "f1": corpus.macro_f1,
}
"""Of corpus metrics: what is computed from summed counts."""

_LONGEST_REASON = 512


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric: what was asked, what was found, what it means."""

    wanted: EvaluationMetric
    metric: Metric
    result: PairedResult
    """Differences in it are turned so that positive means better."""
    verdict: Verdict | None
    """None: shown, not judged."""

    @property
    def difference(self) -> float:
        """Candidate less baseline."""
        return self._turned(self.result.difference)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of candidate less baseline."""
        if self.result.low is None or self.result.high is None:
            return None
        low, high = sorted((self._turned(self.result.low), self._turned(self.result.high)))
        return low, high

    @property
    def compared(self) -> bool:
        """Whether the difference is judged, and not only the candidate's own value."""
        return self.wanted.max_regression is not None or self.wanted.min_improvement is not None

    @property
    def limit(self) -> float | None:
        """Candidate less baseline must be proven better than this; None where the difference is not judged."""
        return self._turned(self.result.floor) if self.compared else None

    def to_result(self) -> MetricResult:
        """As it goes into the records of the operator."""
        low, high = self.interval or (None, None)
        return MetricResult(
            metric=self.metric.name,
            candidate=_rounded(self.result.candidate),
            baseline=_rounded(self.result.baseline),
            difference=_rounded(self.difference),
            low=_rounded(low),
            high=_rounded(high),
            n=self.result.n,
            groups=self.result.groups,
            better=self.metric.better,
            report=self.verdict is None,
            verdict=None if self.verdict is None else self.verdict.value,
            reason=None if self.verdict in (None, Verdict.PASS) else reason(self)[:_LONGEST_REASON],
            method=self.result.method.value,
            power=_rounded(self.result.power) if self.compared else None,
            needed_n=self.result.needed_n if self.compared else None,
        )

    def _turned(self, value: float) -> float:
        return self.result.orientation.sign * value + 0.0  # no minus zero


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, in the order of the run's metrics, and the verdict that they give."""

    rows: tuple[Row, ...]
    verdict: Verdict
    needed_n: int | None
    """Examples with which an equally good candidate passes all judged metrics with a chance of 80 %; None: unknown."""

    @property
    def n(self) -> int:
        """Examples compared."""
        return self.rows[0].result.n

    @property
    def groups(self) -> int:
        """Near-duplicate groups among them."""
        return self.rows[0].result.groups

    def judged(self, verdict: Verdict) -> list[str]:
        """Names of the judged metrics with this verdict."""
        return [row.metric.name for row in self.rows if row.verdict is verdict]


def compare(
    *,
    wanted: Sequence[EvaluationMetric],
    task: Task,
    candidate: Scores,
    baseline: Scores,
    groups: Sequence[str],
    seed: int,
) -> Comparison:
    """Compare and judge. `wanted` must have no `finetune_api.metrics.metric_problems`; `groups`: one an example.

    Raises StageError (65) where a model's scores are no numbers, as those of a model that diverged.
    """
    for role, scores in (("candidate", candidate), ("baseline", baseline)):
        _check_numbers(scores, role=role)
    known = metrics_of(task)
    rows = []
    for metric in wanted:
        threshold = _threshold(metric)
        result = _compare_one(
            wanted=metric,
            metric=known[metric.name],
            columns=(candidate.columns[metric.name], baseline.columns[metric.name]),
            groups=groups,
            threshold=threshold,
            seed=seed,
        )
        compared = metric.max_regression is not None or metric.min_improvement is not None
        rows.append(MetricRow(result=result, threshold=threshold, gating=not metric.report, compared=compared))
    overall = judge(rows)
    return Comparison(
        rows=tuple(
            Row(wanted=metric, metric=known[metric.name], result=row.result, verdict=_shown(verdict))
            for metric, row, verdict in zip(wanted, rows, overall.metrics, strict=True)
        ),
        verdict=overall.verdict,
        needed_n=overall.needed_n,
    )


def headline(comparison: Comparison, *, baseline: str) -> str:
    """The verdict in one sentence."""
    match comparison.verdict:
        case Verdict.PASS:
            gains = [row for row in comparison.rows if row.verdict is not None and (row.result.low or 0) > 0]
            if gains:
                names = _listed([row.metric.name for row in gains])
                rest = "" if len(gains) == len(comparison.judged(Verdict.PASS)) else ", and acceptable on the rest"
                found = f"proven better than {baseline} on {names}{rest}"
            else:
                found = f"proven to be acceptable against {baseline} on every judged metric"
            return f"The candidate is {found}.{_beside(comparison)}"
        case Verdict.FAIL:
            names = _listed(comparison.judged(Verdict.FAIL))
            return f"The candidate is proven unacceptable against {baseline} on {names}."
        case Verdict.INCONCLUSIVE:
            names = _listed(comparison.judged(Verdict.INCONCLUSIVE))
            needed = comparison.needed_n
            enough = f" About {needed:,} examples would do." if needed and needed > comparison.n else ""
            return f"The evidence is not enough to judge the candidate against {baseline} on {names}.{enough}"


def _beside(comparison: Comparison) -> str:
    """What a pass must not hide: metrics that got worse beyond chance and that nobody asked to judge so."""
    names = [row.metric.name for row in comparison.rows if _is_worse(row)]
    return f" All the same, it is worse beyond chance on {_listed(names)}." if names else ""


def explain(row: Row) -> str:
    """The row's numbers and what they mean, in one sentence."""
    result = row.result
    found = f"{result.candidate:.4g} against {result.baseline:.4g}"
    if row.interval is not None:
        low, high = row.interval
        found += f" (difference {row.difference:+.3g}, 95 % interval {low:+.3g} to {high:+.3g})"
    return f"{found}; {reason(row)}"


def reason(row: Row) -> str:
    """What the row's verdict rests on, in plain words."""
    if row.verdict is None:
        return "shown, not judged" + ("; worse beyond chance" if _is_worse(row) else "")
    if row.result.inconclusive is not None:
        return f"nothing can be proven: {row.result.reason}; {_size(row)}"
    match row.verdict:
        case Verdict.PASS:
            worse = ", though worse beyond chance" if _is_worse(row) else ""
            return f"{' and '.join(_proofs(row))}{worse}; {_size(row)}"
        case Verdict.FAIL:
            return f"{_fault(row)}; {_size(row)}"
        case Verdict.INCONCLUSIVE:
            return f"{'; '.join(_doubts(row))}; {_size(row)}"


def _is_worse(row: Row) -> bool:
    return row.result.high is not None and row.result.high < 0


def _check_numbers(scores: Scores, *, role: str) -> None:
    """Of all metrics, asked for or not: the answers of a model whose likelihoods are no numbers mean nothing."""
    for name, column in scores.columns.items():
        wrong = int((~np.isfinite(column)).reshape(len(column), -1).any(axis=1).sum())
        if wrong:
            raise bad_data(
                "ScoresNotFinite",
                f"evaluation.metrics: {name} of the {role} is not a number on {wrong} examples: its weights or its"
                " precision overflow; evaluate in FP32, or train with a lower learning rate",
            )


def _compare_one(
    *,
    wanted: EvaluationMetric,
    metric: Metric,
    columns: tuple[np.ndarray, np.ndarray],
    groups: Sequence[str],
    threshold: Range | None,
    seed: int,
) -> PairedResult:
    low, high = metric.bounds
    margin = required_margin(max_regression=wanted.max_regression, min_improvement=wanted.min_improvement)
    return compare_metric(
        metric=metric.name,
        kind=MetricKind(metric.kind),
        candidate=columns[0],
        baseline=columns[1],
        margin=margin,
        groups=groups,
        orientation=Orientation.HIGHER_IS_BETTER if metric.better == "Higher" else Orientation.LOWER_IS_BETTER,
        statistic=_STATISTICS[metric.name] if metric.kind == "corpus" else None,
        score_range=(low, high) if metric.kind == "mean" and high is not None else None,
        threshold=threshold,
        seed=seed,
    )


def _threshold(wanted: EvaluationMetric) -> Range | None:
    limits = wanted.threshold_range
    return None if limits is None else Range(minimum=limits.min, maximum=limits.max)


def _shown(verdict: MetricVerdict) -> Verdict | None:
    return verdict.verdict if verdict.gating else None


def _proofs(row: Row) -> list[str]:
    proofs = []
    if row.compared:
        demanded = row.wanted.min_improvement
        if demanded:
            proofs.append(f"proven better by more than {demanded:g}")
        elif (row.result.low or 0) > 0 or demanded is not None:
            proofs.append("proven better")
        else:
            proofs.append(f"proven no worse than {row.wanted.max_regression:g} allows")
    if row.wanted.threshold_range is not None:
        proofs.append(f"proven {_inside(row)}")
    return proofs


def _fault(row: Row) -> str:
    proven_worse = row.compared and row.result.high is not None and row.result.high < row.result.floor
    return _worse(row) if proven_worse or row.wanted.threshold_range is None else f"proven not {_inside(row)}"


def _worse(row: Row) -> str:
    if row.wanted.min_improvement is not None:
        return f"proven to gain less than the {row.wanted.min_improvement:g} that are demanded"
    return f"proven worse by more than the {row.wanted.max_regression:g} that are allowed"


def _doubts(row: Row) -> list[str]:
    result, threshold = row.result, row.wanted.threshold_range
    doubts = []
    if row.compared and (result.low is None or result.low <= result.floor):
        if row.wanted.min_improvement is not None:
            doubts.append(f"a gain of {row.wanted.min_improvement:g} is not proven")
        elif row.wanted.max_regression:
            doubts.append(f"a loss of more than {row.wanted.max_regression:g} cannot be ruled out")
        else:
            doubts.append("a loss cannot be ruled out")
    if threshold is not None:
        low, high = result.candidate_low, result.candidate_high
        below = threshold.min is not None and (low is None or low < threshold.min)
        above = threshold.max is not None and (high is None or high > threshold.max)
        if below or above:
            doubts.append(f"not proven {_inside(row)}")
    return doubts


def _inside(row: Row) -> str:
    limits = row.wanted.threshold_range
    assert limits is not None
    if limits.max is None:
        return f"at or above {limits.min:g}"
    if limits.min is None:
        return f"at or below {limits.max:g}"
    return f"between {limits.min:g} and {limits.max:g}"


def _size(row: Row) -> str:
    """n and groups; where more examples could decide, also the power and how many."""
    result = row.result
    words = f"n = {result.n} in {result.groups} groups"
    if not row.compared or row.verdict is not Verdict.INCONCLUSIVE:
        return words
    if result.power is not None and result.inconclusive is None:
        who = "an equally good candidate" if row.wanted.max_regression else "a gain as large as the one seen"
        words += f"; {who} would pass in {100 * result.power:.0f} % of cases at this size"
    if result.needed_n is not None and result.needed_n > result.n:
        words += f"; for 80 %, about {result.needed_n:,} examples are needed"
    return words


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
