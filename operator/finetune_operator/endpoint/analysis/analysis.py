"""The live statistics of one part of a rollout (shadow, a canary step, guard): counts in, verdicts out.

    reports of the gateways (cumulative) -> ledgers (increments) -> sequential tests -> a row for each metric
    counts.py                                                       here                rows.py

Methods, sources and assumptions: finetune_stats, docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from finetune_api.modelendpoint import LiveMetric
from finetune_operator.endpoint.analysis.counts import (
    SOURCES,
    Counts,
    PairSource,
    bad_of,
    compacted,
    new_arms,
    new_pairs,
    shown_before,
)
from finetune_operator.endpoint.analysis.reports import Gateways
from finetune_operator.endpoint.analysis.state import AnalysisState, MetricState, Scope
from finetune_stats.betting import BINS, BoundedMeanState, add
from finetune_stats.edetector import DetectorState, watch_paired, watch_rate, watch_two_rates
from finetune_stats.eprocess import TwoRateState, update
from finetune_stats.two_rates import ArmCounts, Block

_SMALLEST_LIMIT = 1e-3
_LARGEST_LIMIT = 0.95


def begun(*, scope: Scope, before: AnalysisState | None, gateways: Gateways) -> AnalysisState:
    """The state of a part that begins; what stable showed in earlier parts of the rollout is kept."""
    rates = before.rates if before is not None else ()
    return referred(AnalysisState(key=scope.key, rates=rates), scope=scope, gateways=gateways)


def referred(state: AnalysisState, *, scope: Scope, gateways: Gateways) -> AnalysisState:
    """A guard that nothing came before takes what the version before it showed until then, as soon as gateways tell:
    an operator that has just started has not heard of any. No latencies: before a rollout nobody knows which of them
    will be too long."""
    if scope.part != "Guard" or state.reference():
        return state
    shown = shown_before(scope=scope, reports=gateways.reports)
    arms = {metric.name: bad_of(shown, metric=metric.name) for metric in scope.metrics}
    known = {name: (bad, total) for name, bad, total in state.rates}
    known |= {
        name: (arm.bad, arm.total)
        for name, arm in arms.items()
        if name != "latency_seconds" and arm.total > known.get(name, (0.0, 0.0))[1]
    }
    return replace(state, rates=tuple((name, *found) for name, found in sorted(known.items())))


def advance(state: AnalysisState, *, scope: Scope, gateways: Gateways, elapsed_seconds: float) -> AnalysisState:
    """Take in what is new in the gateways' reports. The same reports again change nothing.

    `elapsed_seconds`: of the guard window, since it began; the detectors' clock.
    """
    counted = gateways.without(state.ended)
    state, pairs = new_pairs(state, scope=scope, gateways=counted)
    state, arms = new_arms(state, scope=scope, reports=counted.reports)
    state = compacted(state, gateways=gateways)
    if not pairs and not arms:
        return state
    clock = max(elapsed_seconds - state.clock, 1e-3)
    metrics = []
    for metric in scope.metrics:
        tests = state.metric(metric.name)
        for source in SOURCES:
            counts = pairs.get((metric.name, source))
            if counts is not None:
                tests = _with_pairs(tests, source=source, counts=counts, metric=metric, scope=scope, clock=clock)
        tests = _with_arms(tests, arms=arms, metric=metric, scope=scope, clock=clock)
        metrics.append((metric.name, tests))
    return replace(
        state,
        metrics=tuple(metrics),
        clock=state.clock + clock if scope.part == "Guard" else state.clock,
        rates=_rates(state, scope=scope, arms=arms),
    )


def _with_pairs(
    tests: MetricState, *, source: PairSource, counts: Counts, metric: LiveMetric, scope: Scope, clock: float
) -> MetricState:
    histogram = _histogram(counts)
    alpha = scope.alpha[metric.name]
    if scope.part == "Guard":
        detector = tests.paired or _detector("Paired", limit=metric.max_regression, alpha=alpha, scope=scope)
        return replace(tests, paired=watch_paired(detector, histogram=histogram, clock=clock))
    known = dict(tests.pairs)
    state = known.get(source) or BoundedMeanState(alpha=alpha / len(SOURCES))
    known[source] = add(state, histogram=histogram)
    return replace(tests, pairs=tuple(sorted(known.items())))


def _with_arms(
    tests: MetricState,
    *,
    arms: Mapping[tuple[str, str], Counts],
    metric: LiveMetric,
    scope: Scope,
    clock: float,
) -> MetricState:
    known = dict(tests.arms)
    alpha = scope.alpha[metric.name]
    for rule in scope.rules:
        candidate = arms.get((rule, scope.candidate))
        stable = arms.get((rule, scope.stable)) if scope.stable else None
        if candidate is None and stable is None:
            continue
        block = Block(
            candidate=bad_of(candidate, metric=metric.name) if candidate else ArmCounts(),
            stable=bad_of(stable, metric=metric.name) if stable else ArmCounts(),
        )
        if not block.candidate.total and not block.stable.total:
            continue  # older gateways do not count it
        if scope.part == "Guard":
            tests = _watched(tests, block=block, metric=metric, scope=scope, clock=clock)
            continue
        state = known.get(rule) or TwoRateState(alpha=alpha / len(scope.rules), margin=metric.max_regression)
        known[rule] = update(state, block)
    return replace(tests, arms=tuple(sorted(known.items())))


def _watched(tests: MetricState, *, block: Block, metric: LiveMetric, scope: Scope, clock: float) -> MetricState:
    """Guard: against the version before where it still has users, else against its rate before the promotion."""
    alpha = scope.alpha[metric.name]
    if block.stable.total > 0 or tests.two_rates is not None:
        detector = tests.two_rates or _detector("TwoRates", limit=metric.max_regression, alpha=alpha, scope=scope)
        tests = replace(tests, two_rates=watch_two_rates(detector, block=block, clock=clock))
    if metric.name in scope.reference and block.candidate.total > 0:
        limit = scope.reference[metric.name] + metric.max_regression
        detector = tests.rate or _detector("Rate", limit=limit, alpha=alpha, scope=scope)
        tests = replace(tests, rate=watch_rate(detector, batch=block.candidate, clock=clock))
    return tests


def _detector(
    evidence: Literal["Rate", "TwoRates", "Paired"], *, limit: float, alpha: float, scope: Scope
) -> DetectorState:
    """On a clock of seconds, with at most `alpha` false alarms in one guard window."""
    if evidence == "Rate":
        limit = min(max(limit, _SMALLEST_LIMIT), _LARGEST_LIMIT)
    return DetectorState(evidence=evidence, limit=limit, run_length=max(scope.guard_seconds, 1.0) / alpha)


def _histogram(counts: Counts) -> tuple[float, ...]:
    """Differences of scores: -1 where only the candidate was bad, +1 where only stable was, else 0."""
    pairs, candidate_only, stable_only = counts
    histogram = [0.0] * BINS
    histogram[0] = candidate_only
    histogram[-1] = stable_only
    histogram[BINS // 2] = max(0.0, pairs - candidate_only - stable_only)
    return tuple(histogram)


def _rates(
    state: AnalysisState,
    *,
    scope: Scope,
    arms: Mapping[tuple[str, str], Counts],
) -> tuple[tuple[str, float, float], ...]:
    """What stable has shown before the promotion: the reference of the guard."""
    if scope.part == "Guard":
        return state.rates
    known = {name: (bad, total) for name, bad, total in state.rates}
    for metric in scope.metrics:
        bad, total = known.get(metric.name, (0.0, 0.0))
        for (_, variant), counts in arms.items():
            if variant == scope.stable:
                arm = bad_of(counts, metric=metric.name)
                bad, total = bad + arm.bad, total + arm.total
        if total > 0:
            known[metric.name] = (bad, total)
    return tuple((name, bad, total) for name, (bad, total) in sorted(known.items()))
