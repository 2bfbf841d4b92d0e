"""How many answers it takes to find a loss of quality under guard: the real analysis, in simulated time.

Reports of one gateway go in once a second, as in life: 20 clients' requests a second, 4 % of their answers bad before
the loss; or held-out probes, two a second, answered by both versions. A loss of 10 points is 10 % more bad answers.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal

from finetune_api.modelendpoint import LiveMetric
from finetune_api.observations import ArmCounts, Observations, PairCounts
from finetune_operator.core.ports import Report
from finetune_operator.endpoint.analysis.analysis import advance
from finetune_operator.endpoint.analysis.reports import Gateways
from finetune_operator.endpoint.analysis.rows import rows
from finetune_operator.endpoint.analysis.state import AnalysisState, Scope

LOSSES = (10, 30)
_BAD = 0.04
_REQUESTS, _PROBES = 20, 2
"""A second."""
_HEALTHY_SECONDS = 300
_LONGEST_SECONDS = 3600
_WHEN = datetime(2026, 1, 5, tzinfo=UTC)
Signal = Literal["requests", "probes"]
SIGNALS: tuple[Signal, ...] = ("requests", "probes")
_SCOPE = Scope(
    part="Guard",
    key="new/Guard/0/1",
    candidate="new",
    stable="old",
    rules=("default",),
    since_epoch=1,
    metrics=(LiveMetric(name="quality", max_regression=0.02),),
    alpha={"quality": 0.05 / 6},  # a plan of one canary step and a guard, over three metrics
    guard_seconds=3600.0,
    reference={"quality": _BAD},
)


def samples_to_detect(*, repetitions: int) -> dict[str, Any]:
    """Median, and what 95 of 100 need at most, by loss in points; and how many alarms came before any loss."""
    out: dict[str, Any] = {"false_alarms": 0, "repetitions": repetitions * len(LOSSES) * 2}
    for loss in LOSSES:
        for signal in SIGNALS:
            rng = random.Random(f"{loss} {signal}")
            counts = [_count(rng, loss=loss / 100, signal=signal) for _ in range(repetitions)]
            found = sorted(each for each in counts if each is not None)
            prefix = "" if signal == "requests" else f"{signal}_"
            out[f"{prefix}{loss}"] = median(found)
            out[f"{prefix}{loss}_p95"] = found[int(0.95 * len(found))]
            out["false_alarms"] += len(counts) - len(found)
    return out


def _count(rng: random.Random, *, loss: float, signal: Signal) -> int | None:
    """Answers of the version from the loss to the alarm; None: there was an alarm before."""
    rate = _REQUESTS if signal == "requests" else _PROBES
    totals = {"samples": 0, "candidate": 0, "stable": 0, "both": 0}
    state = AnalysisState(key=_SCOPE.key)
    for second in range(1, _HEALTHY_SECONDS + _LONGEST_SECONDS):
        lost = loss if second > _HEALTHY_SECONDS else 0.0
        for _ in range(rate):
            candidate, stable = rng.random() < _BAD + lost, rng.random() < _BAD
            totals["samples"] += 1
            totals["candidate"] += candidate and not stable
            totals["stable"] += stable and not candidate
            totals["both"] += candidate and stable
        report = Report(observations=_observations(signal, totals), received=_WHEN)
        gateways = Gateways(names=(report.observations.gateway,), reports=(report,), now=_WHEN)
        state = advance(state, scope=_SCOPE, gateways=gateways, elapsed_seconds=float(second))
        if rows(state, scope=_SCOPE, needed=1)[0].verdict == "Fail":
            return (second - _HEALTHY_SECONDS) * rate if lost else None
    raise AssertionError(f"a loss of {loss:g} was not found within an hour")


def _observations(signal: Signal, totals: dict[str, int]) -> Observations:
    """A gateway's report: cumulative."""
    arms, pairs = [], []
    if signal == "requests":
        bad = totals["candidate"] + totals["both"]
        arms.append(ArmCounts(epoch=1, rule="default", variant="new", requests=totals["samples"], bad=bad))
    else:
        counts = {"candidate_only": totals["candidate"], "stable_only": totals["stable"], "both": totals["both"]}
        pairs.append(
            PairCounts(
                epoch=1,
                source="Probe",
                candidate="new",
                stable="old",
                metric="quality",
                pairs=totals["samples"],
                **counts,
            )
        )
    return Observations(
        endpoint="router", gateway="gateway-0", boot_id="boot", acknowledged_epoch=1, arms=arms, pairs=pairs
    )
