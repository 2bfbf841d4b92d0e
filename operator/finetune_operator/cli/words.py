"""Results and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.results import EvaluateResult, Failure, PrepareResult, TrainResult, result_adapter
from finetune_api.shared_fields import MetricResult
from finetune_operator.gates.policy import NOT_JUDGED, WITHIN_LIMITS
from finetune_operator.job.stages import recorded_results


def seconds(value: float) -> str:
    """4 s, 1 min 12 s, 2 h 5 min."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(value: float) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def method(order: Mapping[str, Any]) -> str:
    """QLoRA of rank 16, the base in 4 bits. `order`: a spec's `method`, or one as it was resolved."""
    rank, bits = (order.get("lora") or {}).get("rank"), (order.get("quantisation") or {}).get("bits")
    return (
        str(order.get("type", ""))
        + (f" of rank {rank}" if rank else "")
        + (f", the base in {bits} bits" if bits else "")
    )


def stage_result(result: Mapping[str, Any] | None) -> str:
    """What a complete stage came to, in one line; "" where that is not known."""
    try:
        parsed = result_adapter.validate_python(result) if result else None
    except ValidationError:
        return ""
    reused = "; taken from an earlier attempt" if parsed and not isinstance(parsed, Failure) and parsed.reused else ""
    match parsed:
        case PrepareResult(summary=summary):
            rows = summary.rows
            notes = "".join(f"; note: {remark}" for remark in parsed.remarks)
            return (
                f"{count(summary.rows_read, 'row')} read, {summary.bad_rows} bad, {summary.duplicate_rows} repeated; "
                f"train {rows.train}, validation {rows.validation}, test {rows.test}{reused}{notes}"
            )
        case TrainResult():
            loss = "" if parsed.validation_loss is None else f", validation loss {number(parsed.validation_loss)}"
            early = ", stopped early" if parsed.stopped_early else ""
            if parsed.rolled_back_to:
                early += f", {count(len(parsed.rolled_back_to), 'time')} gone back because it diverged"
            model = f"{parsed.artifact.format} model of {size(parsed.artifact.size_bytes)}"
            return f"{count(parsed.steps, 'step')}{early}{loss}; {model}{reused}"
        case EvaluateResult():
            return f"{parsed.verdict} on {count(parsed.examples, 'held-out example')}{reused}"
        case Failure():
            return f"{parsed.reason}: {parsed.message}"
        case _:
            return ""


def sharing(status: FineTuneJobStatus) -> str:
    """The strategy of a run and, where Auto chose it, why; "" before that is known."""
    found = recorded_results(status).prepare
    if found is not None and found.sharing is not None:
        return f"{found.sharing.name}, chosen: {found.sharing.because}"
    waits = found is None and ((status.plan or {}).get("memory") or {}).get("strategy") == "Auto"
    return "" if waits else str((status.plan or {}).get("strategy", ""))


METRIC_HEADER = ("METRIC", "BASELINE", "CANDIDATE", "DIFFERENCE", "95 % INTERVAL", "N", "VERDICT")


def metric_rows(rows: Sequence[MetricResult]) -> list[tuple[str, ...]]:
    """The comparison, one metric a row: judged ones first."""
    return [
        (
            row.metric,
            number(row.baseline),
            number(row.candidate),
            number(row.difference, signed=True),
            "" if row.low is None or row.high is None else interval(row.low, row.high),
            str(row.n),
            "reported" if row.report else (row.verdict or ""),
        )
        for row in sorted(rows, key=lambda row: row.report)
    ]


def comparison_line(row: MetricResult) -> str:
    """One metric of a comparison: `exact_match: 0.89 against 0.81, difference +0.03 to +0.13, n 1200: Pass`."""
    bounds = "" if row.low is None or row.high is None else f", difference {interval(row.low, row.high)}"
    why = f" ({row.reason})" if row.reason and row.verdict != "Pass" else ""
    verdict = f": {row.verdict}{why}" if row.verdict else ""
    return f"{row.metric}: {number(row.candidate)} against {number(row.baseline)}{bounds}, n {row.n}{verdict}"


def reasons(rows: Sequence[MetricResult]) -> list[str]:
    """Why metrics did not pass."""
    doubts = [f"{row.metric}: {row.reason}" for row in rows if row.reason and row.verdict not in (None, "Pass")]
    worse = [row for row in rows if row.worse_beyond_chance and (row.report or row.verdict in (None, "Pass"))]
    return doubts + [
        f"{row.metric}: worse beyond chance ({NOT_JUDGED if row.report else WITHIN_LIMITS})" for row in worse
    ]


def listed(items: Sequence[str], *, last: str = "and") -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def number(value: float | None, *, signed: bool = False) -> str:
    """Four significant digits."""
    if value is None:
        return ""
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def interval(low: float, high: float) -> str:
    """-0.01 to +0.02."""
    return f"{number(low, signed=True)} to {number(high, signed=True)}"
