"""The verdict on a candidate, from the rows of its comparison.

The rows come judged one by one (finetune_stats.verdict, in the evaluation container). Here they are taken together: all
must pass. What the container said as a whole counts too, since rows that did not fit into its message may be missing,
but it can only make the verdict worse.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.shared_fields import MetricResult, Verdict

_SEVERITY: dict[Verdict, int] = {"Pass": 0, "Inconclusive": 1, "Fail": 2}


def overall_verdict(*, rows: Sequence[MetricResult], reported: Verdict) -> Verdict:
    """Pass only if every judged row passes and there is one; Fail if one fails; else Inconclusive."""
    judged = judged_rows(rows)
    verdicts: list[Verdict] = [row.verdict or "Inconclusive" for row in judged]
    if not judged and reported == "Pass":
        verdicts.append("Inconclusive")  # nothing was proven
    return max([*verdicts, reported], key=lambda verdict: _SEVERITY[verdict])


def judged_rows(rows: Sequence[MetricResult]) -> list[MetricResult]:
    """The rows that decide; the others are only shown."""
    return [row for row in rows if not row.report]
