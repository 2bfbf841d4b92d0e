"""Comparisons of an endpoint's status as text: versions that were evaluated again before they were tried."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.modelendpoint import ComparisonStatus
from finetune_operator.cli.sections import INDENT
from finetune_operator.cli.tables import age, table


def comparisons(found: Sequence[ComparisonStatus], *, now: datetime) -> str:
    """Newest first; "" where there are none."""
    rows = [
        (each.version.name, each.baseline.name, each.verdict, age(since=each.time, now=now), each.reason)
        for each in reversed(found)
    ]
    header = ("NAME", "WITH", "VERDICT", "AGE", "REASON")
    return "Compared again:\n" + table(header=header, rows=rows, indent=INDENT) if rows else ""
