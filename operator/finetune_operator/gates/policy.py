"""What a job's policy makes of a verdict: a chain of gates, the first that objects decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api.shared_fields import MetricResult, Verdict
from finetune_operator.gates.verdict import judged_rows

OnInconclusive = Literal["Hold", "Reject", "Proceed"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison that is over, and the policy for it."""

    verdict: Verdict
    rows: Sequence[MetricResult]
    examples: int
    baseline: str
    on_inconclusive: OnInconclusive


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether the candidate may go on, with a condition's reason and words for a person."""

    accepted: bool
    reason: str
    message: str


def judge(comparison: Comparison) -> Judgement:
    """Accept the candidate unless a gate objects."""
    for gate in (_proven_worse, _undecided):
        objection = gate(comparison)
        if objection is not None:
            return objection
    if comparison.verdict == "Inconclusive":
        return Judgement(
            accepted=True,
            reason="Inconclusive",
            message=f"not decided against {comparison.baseline} ({_doubts(comparison)}); "
            "evaluation.onInconclusive is Proceed",
        )
    metrics = ", ".join(_gain(row) for row in judged_rows(comparison.rows))
    return Judgement(
        accepted=True,
        reason="Proven",
        message=f"proven against {comparison.baseline} on {comparison.examples} held-out examples: {metrics}",
    )


def _proven_worse(comparison: Comparison) -> Judgement | None:
    if comparison.verdict != "Fail":
        return None
    failed = [row for row in judged_rows(comparison.rows) if row.verdict == "Fail"]
    what = "; ".join(f"{row.metric}: {row.reason or _gain(row)}" for row in failed) or "see the report"
    return Judgement(
        accepted=False, reason="GateFailed", message=f"worse than {comparison.baseline} beyond the margin: {what}"
    )


def _undecided(comparison: Comparison) -> Judgement | None:
    if comparison.verdict != "Inconclusive" or comparison.on_inconclusive == "Proceed":
        return None
    wish = _needed(comparison)
    return Judgement(
        accepted=False,
        reason="Inconclusive",
        message=f"not decided against {comparison.baseline} on {comparison.examples} held-out examples: "
        f"{_doubts(comparison)}. {wish}",
    )


def _doubts(comparison: Comparison) -> str:
    doubtful = [row for row in judged_rows(comparison.rows) if row.verdict != "Pass"]
    return "; ".join(f"{row.metric}: {row.reason or 'undecided'}" for row in doubtful) or "see the report"


def _needed(comparison: Comparison) -> str:
    """The way out of an undecided comparison."""
    needs = [row.needed_n for row in judged_rows(comparison.rows) if row.verdict != "Pass" and row.needed_n]
    more = f"About {max(needs)} held-out examples would decide" if needs else "More held-out examples may decide"
    return f"{more}: enlarge data.split.test or evaluation.dataset, or allow more in evaluation.metrics, in a new job"


def _gain(row: MetricResult) -> str:
    if row.candidate is None or row.baseline is None:
        return row.metric
    interval = "" if row.low is None or row.high is None else f" [{row.low:+.3g}, {row.high:+.3g}]"
    return f"{row.metric} {row.baseline:.4g} -> {row.candidate:.4g}{interval}"
