"""What the tests of one part of a rollout say: a row for each metric."""

from __future__ import annotations

from typing import Literal

from finetune_api.modelendpoint import AnalysisRow, LiveMetric
from finetune_operator.endpoint.analysis.counts import shown
from finetune_operator.endpoint.analysis.state import AnalysisState, MetricState, Scope
from finetune_operator.endpoint.rollout.plan import CLIENT_ERRORS


def rows(state: AnalysisState, *, scope: Scope, needed: int) -> list[AnalysisRow]:
    """A row for each metric. Fail: a regression is proven. Pass: `needed` samples are there, none is proven, and the
    difference that was seen is within the margin. Else Inconclusive.

    client_error_rate is told by clients alone (among pairs a refusal is a failure), and the other metrics see to it
    that there are enough of them.
    """
    found = []
    for metric in scope.metrics:
        tests = state.metric(metric.name)
        if metric.name != CLIENT_ERRORS.name:
            found.append(_row(state, metric=metric, scope=scope, needed=needed))
        elif tests != MetricState():
            found.append(_row(state, metric=metric, scope=scope, needed=0))
    return found


def _row(state: AnalysisState, *, metric: LiveMetric, scope: Scope, needed: int) -> AnalysisRow:
    """Rates, difference and bounds are those of clients' requests, of copies or of held-out prompts, whichever look
    worst: many of one kind that went well do not make up for another's."""
    tests, kinds = state.metric(metric.name), shown(state, scope=scope, metric=metric.name)
    worst, guards = max(kinds, key=lambda each: each.excess), scope.part == "Guard"
    # Few users are refused: what one of them does wrong where stable has no users would hold everything up for good.
    seen = max((each.excess for each in kinds if needed or not each.alone), default=-1.0)
    samples = _guarded(tests) if guards else int(sum(each.candidate.total for each in kinds))
    low, high = _bounds(tests)
    reason = _proof(tests, metric=metric)
    if reason is not None:
        verdict: Literal["Pass", "Fail", "Inconclusive"] = "Fail"
    elif samples < needed:
        verdict, reason = "Inconclusive", f"{samples} of {needed} samples"
    elif not guards and seen > metric.max_regression:
        verdict = "Inconclusive"
        margin = f"maxRegression {metric.max_regression:g}"
        reason = f"the rate seen is higher by {seen:.3g}, more than {margin}; not proven"
        if worst.alone and worst.stable.rate is None:
            nobody = "stable has answered none of these requests"
            reason = f"the rate seen is {seen:.3g}, and {nobody}: wait for some, or reject it"
    else:
        verdict, reason = "Pass", None if samples else "nothing to count so far"
    return AnalysisRow(
        metric=metric.name,
        candidate=_rounded(worst.candidate.rate),
        baseline=_rounded(worst.stable.rate),
        low=_rounded(low),
        high=_rounded(high),
        samples=samples,
        verdict=verdict,
        reason=reason,
    )


def _proof(tests: MetricState, *, metric: LiveMetric) -> str | None:
    """In which way a regression is proven; None: it is not."""
    margin = f"{metric.max_regression:g}"
    for source, pairs in tests.pairs:
        if -pairs.high > metric.max_regression:
            prompts = "held-out prompts" if source == "Probe" else "prompts"
            return f"worse than stable on the same {prompts} by more than {margin}"
    for rule, arms in tests.arms:
        if arms.proves_loss:
            return f"the rate under rule {rule} is higher than stable's by more than {margin}"
    if tests.rate is not None and tests.rate.alarmed:
        return f"the rate rose above the limit {tests.rate.limit:.3g}"
    if tests.two_rates is not None and tests.two_rates.alarmed:
        return f"the rate rose above that of the version before by more than {margin}"
    if tests.paired is not None and tests.paired.alarmed:
        return f"worse than the version before on the same prompts by more than {margin}"
    return None


def _guarded(tests: MetricState) -> int:
    """Samples under guard."""
    seen = [tests.rate, tests.two_rates, tests.paired]
    return int(max((each.observations for each in seen if each is not None), default=0))


def _bounds(tests: MetricState) -> tuple[float | None, float | None]:
    """Always-valid bounds of candidate - stable, of what looks worst."""
    found = [(arms.low, arms.high) for _, arms in tests.arms]
    found += [(-pairs.high, -pairs.low) for _, pairs in tests.pairs]
    return max(found, default=(None, None))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
