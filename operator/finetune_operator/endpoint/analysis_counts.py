"""What is new in the gateways' reports: pairs and requests that were not taken in before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from finetune_api.observations import ArmCounts, Observations, PairCounts
from finetune_operator.endpoint.analysis_state import AnalysisState, Scope
from finetune_operator.endpoint.reports import Gateways, source_of
from finetune_operator.ports import Report
from finetune_stats.ledger import Ledger, absorb


def new_pairs(
    state: AnalysisState, *, scope: Scope, gateways: Gateways
) -> tuple[AnalysisState, dict[str, tuple[float, float, float]]]:
    """New pairs by metric: pairs, bad with the candidate only, bad with stable only."""
    state = _with_probe_gateway(state, scope=scope, gateways=gateways)
    ledgers = dict(state.pair_ledgers)
    new: dict[str, tuple[float, float, float]] = {}
    for report in gateways.reports:
        for metric in scope.metrics:
            sums = [0.0, 0.0, 0.0]
            for pair in _pairs_of(report.observations, scope=scope, metric=metric.name):
                if pair.source == "Probe" and source_of(report) != state.probe_gateway:
                    continue
                sums = [
                    sums[0] + pair.pairs,
                    sums[1] + pair.candidate_only,
                    sums[2] + pair.stable_only,
                ]
            if not any(sums):
                continue
            ledger = ledgers.get(metric.name, Ledger(width=3))
            ledgers[metric.name], gained = absorb(ledger, source=source_of(report), cumulative=sums)
            if any(gained):
                old = new.get(metric.name, (0.0, 0.0, 0.0))
                new[metric.name] = (old[0] + gained[0], old[1] + gained[1], old[2] + gained[2])
    return replace(state, pair_ledgers=tuple(sorted(ledgers.items()))), new


def _with_probe_gateway(state: AnalysisState, *, scope: Scope, gateways: Gateways) -> AnalysisState:
    """Choose whose probes count, since all gateways send the same prompts: the first that has any. Where that one has
    ended, those of another count, from its first on: some prompts twice rather than a step that waits for ever."""
    chosen = state.probe_gateway
    if chosen is not None and not gateways.is_gone(chosen):
        return state
    for report in sorted(gateways.newest().values(), key=source_of):
        if any(
            pair.source == "Probe"
            for metric in scope.metrics
            for pair in _pairs_of(report.observations, scope=scope, metric=metric.name)
        ):
            return replace(state, probe_gateway=source_of(report))
    return state


def _pairs_of(observations: Observations, *, scope: Scope, metric: str) -> Iterator[PairCounts]:
    for pair in observations.pairs:
        if pair.metric == metric and pair.candidate == scope.candidate and pair.epoch >= scope.since_epoch:
            yield pair


def new_arms(
    state: AnalysisState, *, scope: Scope, reports: tuple[Report, ...]
) -> tuple[AnalysisState, dict[tuple[str, str], tuple[float, ...]]]:
    """New requests by rule and variant: requests, errors, slow, bad, clients, client errors."""
    ledgers = dict(state.arm_ledgers)
    new: dict[tuple[str, str], tuple[float, ...]] = {}
    for report in reports:
        sums: dict[tuple[str, str], list[float]] = {}
        for arm in report.observations.arms:
            if arm.rule in scope.rules and arm.epoch >= scope.since_epoch:
                total = sums.setdefault((arm.rule, arm.variant), [0.0] * 6)
                for index, count in enumerate(_counts(arm)):
                    total[index] += count
        for (rule, variant), counts in sums.items():
            if variant not in (scope.candidate, scope.stable):
                continue
            source = source_of(report)
            gained: tuple[float, ...] = ()
            # Two ledgers: the first one is as operators kept it that knew no client errors.
            for name, part in ((f"{rule}/{variant}", counts[:4]), (f"{rule}/{variant}/clients", counts[4:])):
                ledger = ledgers.get(name, Ledger(width=len(part)))
                ledgers[name], more = absorb(ledger, source=source, cumulative=_with_room(ledger, source, part))
                gained = (*gained, *more)
            if any(gained):
                old = new.get((rule, variant), (0.0,) * 6)
                new[rule, variant] = tuple(a + b for a, b in zip(old, gained, strict=True))
    return replace(state, arm_ledgers=tuple(sorted(ledgers.items()))), new


def _with_room(ledger: Ledger, source: str, counts: list[float]) -> list[float]:
    """The counts, with as many requests as it takes for every new bad outcome to be one of them.

    A vote may come long after its request was taken in as a good one. It is an outcome at once, and the next good ones
    make up for it: none is lost, none counts twice, and bad outcomes are to requests what the gateway says they are.
    """
    before = dict(ledger.sources).get(source, (0.0,) * ledger.width)
    gained = max(now - then for now, then in zip(counts[1:], before[1:], strict=True))
    return [max(counts[0], before[0] + gained), *counts[1:]]


def _counts(arm: ArmCounts) -> tuple[float, ...]:
    # An overdue request is an error before it counts as a request that was answered.
    requests = max(arm.requests, arm.errors, arm.slow)
    return tuple(float(each) for each in (requests, arm.errors, arm.slow, arm.bad, arm.clients, arm.client_errors))
