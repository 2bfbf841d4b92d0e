"""What a job's policy makes of a verdict: a chain of gates, the first that objects decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api.shared_fields import MetricResult, Verdict
from finetune_operator.core.reasons import Reason
from finetune_operator.gates.verdict import judged_rows

NOT_JUDGED = "reported, not judged"
WITHIN_LIMITS = "within what is allowed"

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
    held: bool = False
    """A person may still let it go on."""


def judge(comparison: Comparison) -> Judgement:
    """Accept the candidate unless a gate objects."""
    for gate in (_proven_worse, _undecided):
        objection = gate(comparison)
        if objection is not None:
            return objection
    if comparison.verdict == "Inconclusive":
        return Judgement(
            accepted=True,
            reason=Reason.INCONCLUSIVE,
            message=f"not decided against {comparison.baseline} ({_doubts(comparison)}); "
            f"evaluation.onInconclusive: Proceed{_beside(comparison)}",
        )
    metrics = ", ".join(_gain(row) for row in judged_rows(comparison.rows))
    return Judgement(
        accepted=True,
        reason=Reason.PROVEN,
        message=f"proven against {comparison.baseline} on {comparison.examples} held-out examples: {metrics}"
        f"{_beside(comparison)}",
    )


def _proven_worse(comparison: Comparison) -> Judgement | None:
    if comparison.verdict != "Fail":
        return None
    failed = [row for row in judged_rows(comparison.rows) if row.verdict == "Fail"]
    what = "; ".join(f"{row.metric}: {row.reason or _gain(row)}" for row in failed) or "see the report"
    too_little = bool(failed) and all(row.low is not None and not row.worse_beyond_chance for row in failed)
    words = (
        f"gains less than is demanded over {comparison.baseline}"
        if too_little
        else f"worse than {comparison.baseline} beyond the margin"
    )
    return Judgement(accepted=False, reason=Reason.GATE_FAILED, message=f"{words}: {what}")


def _undecided(comparison: Comparison) -> Judgement | None:
    if comparison.verdict != "Inconclusive" or comparison.on_inconclusive == "Proceed":
        return None
    held = comparison.on_inconclusive == "Hold"
    then = "a person may approve it at an endpoint" if held else "it is given up"
    return Judgement(
        accepted=False,
        reason=Reason.INCONCLUSIVE,
        message=f"not decided against {comparison.baseline} on {comparison.examples} held-out examples: "
        f"{_doubts(comparison)}. {_needed(comparison)}. evaluation.onInconclusive: {comparison.on_inconclusive}, so"
        f" {then}",
        held=held,
    )


def _doubts(comparison: Comparison) -> str:
    doubtful = [row for row in judged_rows(comparison.rows) if row.verdict != "Pass"]
    return "; ".join(f"{row.metric}: {row.reason or 'undecided'}" for row in doubtful) or "see the report"


def _needed(comparison: Comparison) -> str:
    """The way out of an undecided comparison."""
    needs = [row.needed_n for row in judged_rows(comparison.rows) if row.verdict != "Pass" and row.needed_n]
    more = f"About {max(needs)} held-out examples would decide" if needs else "More held-out examples may decide"
    return f"{more}: enlarge data.split.test or evaluation.dataset, or allow more in evaluation.metrics, in a new job"


def _beside(comparison: Comparison) -> str:
    """What got worse all the same: a metric that is only shown, or that lost less than is allowed."""
    worse = [row for row in comparison.rows if row.worse_beyond_chance and (row.report or row.verdict == "Pass")]
    named = ", ".join(f"{_gain(row)} ({NOT_JUDGED if row.report else WITHIN_LIMITS})" for row in worse)
    return f". Worse beyond chance, all the same: {named}" if named else ""


def _gain(row: MetricResult) -> str:
    if row.candidate is None or row.baseline is None:
        return row.metric
    interval = "" if row.low is None or row.high is None else f" [{row.low:+.3g}, {row.high:+.3g}]"
    return f"{row.metric} {row.baseline:.4g} -> {row.candidate:.4g}{interval}"
