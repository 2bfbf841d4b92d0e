"""From rows of results to a verdict on the candidate.

- Pass: every metric that is judged is proven acceptable: its lower bound lies above the floor (no loss beyond the
  margin, or the demanded improvement), and the bounds on its own value inside the threshold range. All must hold, so no
  correction for many metrics is due (intersection-union test: R. L. Berger, Technometrics 24 (1982) 295-300): a
  candidate that is bad on any metric passes with probability at most alpha.
- Fail: at least one metric is proven unacceptable. One of many could look so by chance, so the p-values go through
  S. Holm's procedure (Scandinavian Journal of Statistics 6 (1979) 65-70): a candidate with no fault fails with
  probability at most alpha.
- Inconclusive: neither. Never a silent pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from finetune_stats.comparison import Range
from finetune_stats.power import needed_together
from finetune_stats.result import PairedResult


class Verdict(StrEnum):
    """What the evidence says."""

    PASS = "Pass"  # noqa: S105 - a verdict, not a password
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A result and how it is judged. `result` was computed with this `threshold`, and with the margin in force."""

    result: PairedResult
    threshold: Range | None = None
    gating: bool = True
    """False: shown, not judged."""
    compared: bool = True
    """False: only `threshold` is demanded; any difference from the baseline will do."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.result.p_outside is None and self.result.inconclusive is None:
            raise ValueError(
                f"metric {self.result.metric}: compare_metric was not told of the threshold {self.threshold}"
            )
        if self.gating and not self.compared and self.threshold is None:
            raise ValueError(f"metric {self.result.metric}: neither the difference nor a threshold is to be judged")


@dataclass(frozen=True, kw_only=True)
class MetricVerdict:
    """The verdict on one metric, with the words for it."""

    metric: str
    verdict: Verdict
    reason: str
    gating: bool


@dataclass(frozen=True, kw_only=True)
class OverallVerdict:
    """The verdict on the candidate; `metrics` in the order of the rows."""

    verdict: Verdict
    reason: str
    metrics: tuple[MetricVerdict, ...]
    needed_n: int | None
    """Examples with which an equally good candidate passes all judged metrics with a chance of 80 %; more than any of
    the metrics needs alone. None where one of them cannot say."""


def required_margin(*, max_regression: float | None, min_improvement: float | None) -> float:
    """The margin to compare with when a policy sets one of these or both: the stricter one. None of them: no loss."""
    floors = []
    if max_regression is not None:
        floors.append(-max_regression)
    if min_improvement is not None:
        floors.append(min_improvement)
    return -max(floors, default=0.0)


def holm(*, p_values: Sequence[float], alpha: float) -> tuple[bool, ...]:
    """Which hypotheses are rejected with a family-wise error of at most alpha, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return tuple(rejected)


def judge(rows: Sequence[MetricRow], *, alpha: float = 0.025) -> OverallVerdict:
    """Judge a candidate by its rows. Raises ValueError when no row is gating: nothing would be proven by a pass."""
    gating = [row for row in rows if row.gating]
    if not gating:
        raise ValueError(
            "no metric is judged: give at least one of evaluation.metrics a maxRegression, "
            "minImprovement or thresholdRange"
        )
    claims = [(row, kind, p) for row in gating for kind, p in _claims(row)]
    proven = holm(p_values=[p for _, _, p in claims], alpha=alpha)
    faults = {
        id(row): kind for (row, kind, _), is_proven in reversed(list(zip(claims, proven, strict=True))) if is_proven
    }
    metrics = tuple(_metric_verdict(row, fault=faults.get(id(row))) for row in rows)
    return OverallVerdict(
        verdict=_overall(metrics), reason=_overall_reason(metrics), metrics=metrics, needed_n=_needed(gating)
    )


def _claims(row: MetricRow) -> list[tuple[str, float]]:
    """The faults that this row could prove, each with its p-value."""
    if row.result.inconclusive is not None:
        return []
    claims = [("loss", row.result.p_loss)] if row.compared else []
    if row.result.p_outside is not None:
        claims.append(("outside", row.result.p_outside))
    return claims


def _metric_verdict(row: MetricRow, *, fault: str | None) -> MetricVerdict:
    result = row.result
    if result.inconclusive is not None:
        verdict, reason = Verdict.INCONCLUSIVE, result.reason
    elif fault == "loss":
        verdict, reason = Verdict.FAIL, f"the difference {_interval(result)} is proven below {result.floor:+.4g}"
    elif fault == "outside":
        verdict, reason = Verdict.FAIL, f"{result.candidate:.4g} is proven outside {_range(row.threshold)}"
    else:
        doubts = _doubts(row)
        verdict = Verdict.INCONCLUSIVE if doubts else Verdict.PASS
        reason = "; ".join(doubts) or _proof(row)
    return MetricVerdict(metric=result.metric, verdict=verdict, reason=reason, gating=row.gating)


def _proof(row: MetricRow) -> str:
    """What a pass rests on."""
    result = row.result
    if row.compared:
        return f"the difference {_interval(result)} is proven above {result.floor:+.4g}"
    return f"{result.candidate:.4g} is proven inside {_range(row.threshold)}"


def _doubts(row: MetricRow) -> list[str]:
    """What is missing for a pass."""
    result, threshold = row.result, row.threshold
    doubts = []
    if row.compared and (result.low is None or result.low <= result.floor):
        needed = "" if result.needed_n is None else f"; about {result.needed_n} examples would do (now {result.n})"
        doubts.append(f"the difference {_interval(result)} may be below {result.floor:+.4g}{needed}")
    if threshold is not None:
        low, high = result.candidate_low, result.candidate_high
        below = threshold.minimum is not None and (low is None or low < threshold.minimum)
        above = threshold.maximum is not None and (high is None or high > threshold.maximum)
        if below or above:
            doubts.append(f"{result.candidate:.4g} may be outside {_range(threshold)}")
    return doubts


def _needed(gating: Sequence[MetricRow]) -> int | None:
    alone = [row.result.needed_n for row in gating if row.compared]
    known = [needed for needed in alone if needed is not None]
    return needed_together(needed=known, alpha=gating[0].result.alpha) if known and known == alone else None


def _overall(metrics: Sequence[MetricVerdict]) -> Verdict:
    verdicts = {metric.verdict for metric in metrics if metric.gating}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if verdicts == {Verdict.PASS} else Verdict.INCONCLUSIVE


def _overall_reason(metrics: Sequence[MetricVerdict]) -> str:
    overall = _overall(metrics)
    if overall is Verdict.PASS:
        return "every judged metric is proven acceptable"
    return "; ".join(f"{m.metric}: {m.reason}" for m in metrics if m.gating and m.verdict is overall)


def _interval(result: PairedResult) -> str:
    if result.low is None or result.high is None:
        return f"{result.difference:+.4g}"
    return f"{result.difference:+.4g} [{result.low:+.4g}, {result.high:+.4g}]"


def _range(threshold: Range | None) -> str:
    if threshold is None:
        return "its range"
    low = "" if threshold.minimum is None else f"{threshold.minimum:g}"
    high = "" if threshold.maximum is None else f"{threshold.maximum:g}"
    return f"[{low}..{high}]"
