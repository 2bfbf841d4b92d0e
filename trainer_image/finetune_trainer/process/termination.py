"""The termination message: a stage's result as JSON in at most 4 KiB.

What does not fit is left out in order of how easily it is found elsewhere (the manifest, the reports, the log), and
the log says what was left out. What the operator needs to go on is never left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

from finetune_api.results import MAXIMUM_MESSAGE_BYTES, EvaluateResult, Failure, PrepareResult, TrainResult

log = logging.getLogger(__name__)

_Result = PrepareResult | TrainResult | EvaluateResult | Failure
_SHORT_REASON = 80
_CUT = " [cut]"


def message(result: _Result) -> bytes:
    """The result as UTF-8 JSON of at most `MAXIMUM_MESSAGE_BYTES`. Raises ValueError when that is impossible."""
    encoded = _encode(result)
    left_out = []
    for what, smaller in _smaller(result):
        if len(encoded) <= MAXIMUM_MESSAGE_BYTES:
            break
        left_out.append(what)
        encoded = _encode(smaller)
    if len(encoded) > MAXIMUM_MESSAGE_BYTES:
        raise ValueError(f"a {result.stage} result of {len(encoded)} bytes cannot be made to fit a termination message")
    if left_out:
        log.warning("left out of the termination message, which holds 4096 bytes: %s", ", ".join(left_out))
    return encoded


def _smaller(result: _Result) -> Iterator[tuple[str, _Result]]:
    """Ever smaller versions of the result, with the name of what each leaves out."""
    match result:
        case PrepareResult():
            while result.remarks:
                result = result.model_copy(update={"remarks": result.remarks[:-1]})
                yield "a remark", result
            if result.labels is not None:
                result = result.model_copy(update={"labels": None})
                yield "labels", result
            while result.sources:
                yield (
                    f"source {result.sources[-1].name}",
                    (result := result.model_copy(update={"sources": result.sources[:-1]})),
                )
        case TrainResult():
            yield "packages", result.model_copy(update={"packages": {}})
        case EvaluateResult():
            yield from _smaller_evaluation(result)
        case Failure():
            text = result.message
            while len(text) > len(_CUT):
                text = text[: int(len(text) * 0.8)]
                yield "the end of the message", result.model_copy(update={"message": text + _CUT})


def _smaller_evaluation(result: EvaluateResult) -> Iterator[tuple[str, EvaluateResult]]:
    judged = [row for row in result.results if not row.report]
    yield "metrics that are only reported", (result := result.model_copy(update={"results": judged}))
    short = [row.model_copy(update={"reason": row.reason and row.reason[:_SHORT_REASON]}) for row in judged]
    yield "long reasons", (result := result.model_copy(update={"results": short}))
    # The rows that decided come first; a verdict of a dropped row is part of the overall one.
    order = {"Fail": 0, "Inconclusive": 1, "Pass": 2, None: 3}
    rows = sorted(short, key=lambda row: order[row.verdict])
    while rows:
        yield f"metric {rows[-1].metric}", result.model_copy(update={"results": (rows := rows[:-1])})


def _encode(result: _Result) -> bytes:
    return json.dumps(result.to_dict(), ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
