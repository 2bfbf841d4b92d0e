"""What the tests of one part of a rollout say: a row for each metric."""

from __future__ import annotations

from typing import Literal

from finetune_api.modelendpoint import AnalysisRow, LiveMetric
from finetune_operator.endpoint.analysis_state import AnalysisState, MetricState, Part, Scope
from finetune_operator.endpoint.plan import CLIENT_ERRORS
from finetune_stats.two_rates import ArmCounts


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
            found.append(_row(tests, metric=metric, scope=scope, needed=needed))
        elif tests != MetricState():
            found.append(_row(tests, metric=metric, scope=scope, needed=0))
    return found


def _row(tests: MetricState, *, metric: LiveMetric, scope: Scope, needed: int) -> AnalysisRow:
    candidate, stable = _rates_of(tests)
    samples = _samples(tests, part=scope.part)
    low, high = _bounds(tests)
    reason = _proof(tests, metric=metric)
    seen = _difference(tests)
    if reason is not None:
        verdict: Literal["Pass", "Fail", "Inconclusive"] = "Fail"
    elif samples < needed:
        verdict, reason = "Inconclusive", f"{samples} of {needed} samples"
    elif seen is not None and seen > metric.max_regression:
        verdict = "Inconclusive"
        reason = f"the rate seen is higher by {seen:.3g}, more than maxRegression {metric.max_regression:g}; not proven"
    else:
        verdict = "Pass"
    return AnalysisRow(
        metric=metric.name,
        candidate=_rounded(candidate),
        baseline=_rounded(stable),
        low=_rounded(low),
        high=_rounded(high),
        samples=samples,
        verdict=verdict,
        reason=reason,
    )


def _proof(tests: MetricState, *, metric: LiveMetric) -> str | None:
    """In which way a regression is proven; None: it is not."""
    margin = f"{metric.max_regression:g}"
    if tests.pairs is not None and -tests.pairs.high > metric.max_regression:
        return f"worse than stable on the same prompts by more than {margin}"
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


def _samples(tests: MetricState, *, part: Part) -> int:
    """What the candidate has answered: requests of clients and, so that none need come, held-out prompts."""
    if part != "Guard":
        return int((tests.pairs.samples if tests.pairs else 0) + _answered(tests))
    seen = [tests.rate, tests.two_rates, tests.paired]
    return int(max((each.observations for each in seen if each is not None), default=0))


def _answered(tests: MetricState) -> float:
    """Requests of clients that the candidate has answered."""
    return float(sum(arms.candidate.total + arms.pending.candidate.total for _, arms in tests.arms))


def _difference(tests: MetricState) -> float | None:
    """The rate of bad answers seen of the candidate, less that of stable: among clients' requests or among pairs,
    whichever looks worse. Many prompts that went well do not make up for clients who fare badly."""
    candidate, stable = _rates_of_arms(tests)
    among_clients = candidate - stable if candidate is not None and stable is not None else None
    among_pairs = -tests.pairs.mean if tests.pairs is not None and tests.pairs.mean is not None else None
    return max((each for each in (among_clients, among_pairs) if each is not None), default=None)


def _rates_of(tests: MetricState) -> tuple[float | None, float | None]:
    """Rates of bad answers of candidate and stable, as far as the arms tell; a shadow tells the difference only."""
    rates = _rates_of_arms(tests)
    if None in rates and tests.pairs is not None and tests.pairs.mean is not None:
        return -tests.pairs.mean, 0.0
    return rates


def _rates_of_arms(tests: MetricState) -> tuple[float | None, float | None]:
    candidate, stable = ArmCounts(), ArmCounts()
    for _, arms in tests.arms:
        candidate = candidate.plus(arms.candidate)
        stable = stable.plus(arms.stable)
    return candidate.rate, stable.rate


def _bounds(tests: MetricState) -> tuple[float | None, float | None]:
    """Always-valid bounds of candidate - stable."""
    found = [(arms.low, arms.high) for _, arms in tests.arms]
    if tests.pairs is not None:
        found.append((-tests.pairs.high, -tests.pairs.low))
    if not found:
        return None, None
    return max(low for low, _ in found), min(high for _, high in found)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
