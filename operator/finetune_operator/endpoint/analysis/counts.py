"""What is new in the gateways' reports: pairs and requests that were not taken in before."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

from finetune_api.observations import ArmCounts, Observations, PairCounts
from finetune_operator.core.ports import Report
from finetune_operator.endpoint.analysis.reports import Gateways, source_of
from finetune_operator.endpoint.analysis.state import AnalysisState, Scope
from finetune_stats.ledger import ENDED, Ledger, absorb, without_ended
from finetune_stats.two_rates import NO_OUTCOMES
from finetune_stats.two_rates import ArmCounts as Outcomes

Counts = tuple[float, ...]
PairSource = Literal["Shadow", "Probe"]
SOURCES: tuple[PairSource, ...] = ("Shadow", "Probe")
"""Of pairs. Each has its share of a metric's error probability."""
_ENDED_KEPT = 100
"""Names of starts that are over and reported of no more: nothing should come of them any more."""


def new_pairs(
    state: AnalysisState, *, scope: Scope, gateways: Gateways
) -> tuple[AnalysisState, dict[tuple[str, PairSource], Counts]]:
    """New pairs by metric and source: pairs, bad with the candidate only, bad with stable only."""
    state = _with_probe_gateway(state, scope=scope, gateways=gateways)
    ledgers, seen = dict(state.pair_ledgers), dict(state.epochs)
    new: dict[tuple[str, PairSource], Counts] = {}
    for report in gateways.reports:
        epochs: dict[tuple[str, PairSource], dict[int, Counts]] = {}
        for metric in scope.metrics:
            for pair in _pairs_of(report.observations, scope=scope, metric=metric.name):
                if pair.source == "Shadow" or source_of(report) == state.probe_gateway:
                    counted = (pair.pairs, pair.candidate_only, pair.stable_only, pair.both)
                    known = epochs.setdefault((metric.name, pair.source), {})
                    known[pair.epoch] = _plus(known.get(pair.epoch), counted)
        for key, found in epochs.items():
            name, source = "/".join(key), source_of(report)
            counts = _since_the_start(seen, name=name, report=report, epochs=found)
            ledgers[name], gained = absorb(ledgers.get(name, Ledger(width=3)), source=source, cumulative=counts[:3])
            # A ledger of its own: the first one is as operators kept it that did not show both rates.
            both = ledgers.get(f"{name}/both", Ledger(width=1))
            ledgers[f"{name}/both"], _ = absorb(both, source=source, cumulative=counts[3:])
            if any(gained):
                new[key] = _plus(new.get(key), gained)
    return replace(state, pair_ledgers=tuple(sorted(ledgers.items())), epochs=tuple(sorted(seen.items()))), new


def compacted(state: AnalysisState, *, gateways: Gateways) -> AnalysisState:
    """The state with one sum for all starts of gateways that are over. One that is killed again and again would fill
    it else: it is kept in one object, and a step may wait for days."""
    ledgers = (*state.arm_ledgers, *state.pair_ledgers)
    sources = {source for _, ledger in ledgers for source, _ in ledger.sources} - {ENDED}
    over = sorted(source for source in sources if gateways.is_over(source))
    if not over:
        return state
    ended = (*state.ended, *over)
    told = {source_of(report) for report in gateways.reports}
    forgotten = {source for source in ended if source not in told} - {*ended[-_ENDED_KEPT:]}
    return replace(
        state,
        arm_ledgers=tuple((name, without_ended(ledger, ended=over)) for name, ledger in state.arm_ledgers),
        pair_ledgers=tuple((name, without_ended(ledger, ended=over)) for name, ledger in state.pair_ledgers),
        epochs=tuple((name, _without_epochs(seen, of=over)) for name, seen in state.epochs),
        ended=tuple(source for source in ended if source not in forgotten),
    )


def _without_epochs(seen: Ledger, *, of: Collection[str]) -> Ledger:
    return replace(seen, sources=tuple(each for each in seen.sources if each[0].rpartition("@")[0] not in of))


def _since_the_start(seen: dict[str, Ledger], *, name: str, report: Report, epochs: dict[int, Counts]) -> Counts:
    """What a start of a gateway has counted in this part: of the epochs that it tells of, and of those that it told of
    and has forgotten. `seen` keeps each of the former, and the sum of the latter (its epoch is `..N`, the last one)."""
    source, width = source_of(report), len(next(iter(epochs.values())))
    of_all = dict(seen.get(name, Ledger(width=width)).sources)
    mine = {key.rpartition("@")[2]: of_all.pop(key) for key in list(of_all) if key.rpartition("@")[0] == source}
    forgotten = max((int(epoch[2:]) for epoch in mine if epoch.startswith("..")), default=-1)
    for epoch, counts in epochs.items():
        if epoch > forgotten:
            mine[str(epoch)] = tuple(map(max, counts, mine.get(str(epoch), counts)))
    gone = [epoch for epoch in mine if epoch.startswith("..") or int(epoch) < min(epochs)]
    if gone:
        last = max(int(epoch.removeprefix("..")) for epoch in gone)
        mine[f"..{last}"] = tuple(map(sum, zip(*[mine.pop(epoch) for epoch in gone], strict=True)))
    if len(mine) > 1 or report.observations.acknowledged_epoch > min(epochs):  # else nothing can be forgotten yet
        of_all |= {f"{source}@{epoch}": counts for epoch, counts in mine.items()}
        seen[name] = Ledger(width=width, sources=tuple(sorted(of_all.items())))
    return tuple(map(sum, zip(*mine.values(), strict=True)))


def _plus(one: Counts | None, other: Counts) -> Counts:
    return other if one is None else tuple(a + b for a, b in zip(one, other, strict=True))


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
) -> tuple[AnalysisState, dict[tuple[str, str], Counts]]:
    """New requests by rule and variant: requests, errors, slow, bad, clients, client errors. Beside a shadow those of
    stable, which no rule shares then."""
    ledgers, seen = dict(state.arm_ledgers), dict(state.epochs)
    new: dict[tuple[str, str], Counts] = {}
    for report in reports:
        epochs: dict[tuple[str, str], dict[int, Counts]] = {}
        for arm in report.observations.arms:
            if (arm.rule in scope.rules or scope.part == "Shadow") and arm.epoch >= scope.since_epoch:
                known = epochs.setdefault((arm.rule, arm.variant), {})
                known[arm.epoch] = _plus(known.get(arm.epoch), _counts(arm))
        for (rule, variant), found in epochs.items():
            if variant not in (scope.candidate, scope.stable):
                continue
            source = source_of(report)
            gained: Counts = ()
            counts = _since_the_start(seen, name=f"{rule}/{variant}", report=report, epochs=found)
            # Two ledgers: the first one is as operators kept it that knew no client errors.
            for name, part in ((f"{rule}/{variant}", counts[:4]), (f"{rule}/{variant}/clients", counts[4:])):
                ledger = ledgers.get(name, Ledger(width=len(part)))
                ledgers[name], more = absorb(ledger, source=source, cumulative=_with_room(ledger, source, part))
                gained = (*gained, *more)
            if any(gained):
                new[rule, variant] = _plus(new.get((rule, variant)), gained)
    return replace(state, arm_ledgers=tuple(sorted(ledgers.items())), epochs=tuple(sorted(seen.items()))), new


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What candidate and stable have shown of one kind of requests."""

    candidate: Outcomes
    stable: Outcomes
    alone: bool = False
    """Stable has answered none of these requests: its outcomes, if any, are of others."""

    @property
    def excess(self) -> float:
        """How much more of the candidate's answers were bad; -1 where nothing was seen. Of stable's that nothing is
        known of none counts as bad."""
        if self.candidate.rate is None or (self.stable.rate is None and not self.alone):
            return -1.0
        return self.candidate.rate - (self.stable.rate or 0.0)


def shown(state: AnalysisState, *, scope: Scope, metric: str) -> list[Shown]:
    """What was seen in this part of each kind of requests: those of clients, under rules where both versions answer;
    those of clients where stable has answered none; pairs. In place of its own answers stand those of stable in the
    rollout so far, under guard too. Held-out prompts, which are asked again and again there, tell what has changed
    under guard, not how many answers are bad."""
    arms, pairs = dict(state.arm_ledgers), dict(state.pair_ledgers)

    def of_clients(rule: str, variant: str | None) -> Outcomes:
        name = f"{rule}/{variant}"
        if name not in arms:
            return NO_OUTCOMES
        clients = arms.get(f"{name}/clients", Ledger(width=2))  # operators that knew none kept no such ledger
        return bad_of((*arms[name].total, *clients.total), metric=metric)

    rules = [(of_clients(rule, scope.candidate), of_clients(rule, scope.stable)) for rule in scope.rules]
    both_answer = [(one, other) for one, other in rules if one.total and other.total]
    found = [_alike(both_answer)] if both_answer else []
    alone = reduce(Outcomes.plus, [one for one, other in rules if not other.total], NO_OUTCOMES)
    if alone.total or not found:
        known = {name: Outcomes(bad=bad, total=total) for name, bad, total in state.rates}
        stands_for = known.get(metric, NO_OUTCOMES) if alone.total or scope.part == "Guard" else NO_OUTCOMES
        found.append(Shown(candidate=alone, stable=stands_for, alone=True))
    for source in SOURCES:
        name = f"{metric}/{source}"
        if name in pairs and not (source == "Probe" and scope.part == "Guard"):
            total, candidate_only, stable_only = pairs[name].total
            both = sum(pairs[f"{name}/both"].total) if f"{name}/both" in pairs else 0.0
            candidate, stable = candidate_only + both, stable_only + both
            found.append(
                Shown(candidate=Outcomes(bad=candidate, total=total), stable=Outcomes(bad=stable, total=total))
            )
    return found


def _alike(rules: list[tuple[Outcomes, Outcomes]]) -> Shown:
    """The rates of both, each rule with the same weight at both (Mantel and Haenszel's, J. Natl. Cancer Inst. 22 (1959)
    719-748). Rules are for different users: of those with most faults the candidate may have more, and be as good."""
    weights = [one.total * other.total / (one.total + other.total) for one, other in rules]

    def of(counts: list[Outcomes]) -> Outcomes:
        total = math.fsum(each.total for each in counts)
        bad = math.fsum(weight * (each.rate or 0.0) for weight, each in zip(weights, counts, strict=True))
        return Outcomes(bad=total * bad / math.fsum(weights), total=total)

    return Shown(candidate=of([one for one, _ in rules]), stable=of([other for _, other in rules]))


def bad_of(counts: Counts, *, metric: str) -> Outcomes:
    """What of an arm's counts a metric is about."""
    requests, errors, slow, bad, clients, client_errors = counts
    if metric == "client_error_rate":
        return Outcomes(bad=client_errors, total=clients)
    return Outcomes(bad={"error_rate": errors, "latency_seconds": slow, "quality": bad}[metric], total=requests)


def shown_before(*, scope: Scope, reports: tuple[Report, ...]) -> Counts:
    """What the version that is compared with has shown in earlier epochs, as far as gateways still tell."""
    found: Counts = (0.0,) * 6
    for report in reports:
        for arm in report.observations.arms:
            if arm.variant == scope.stable and arm.epoch < scope.since_epoch:
                found = _plus(found, _counts(arm))
    return found


def _with_room(ledger: Ledger, source: str, counts: Counts) -> Counts:
    """The counts, with as many requests as it takes for every new bad outcome to be one of them.

    A vote may come long after its request was taken in as a good one. It is an outcome at once, and the next good ones
    make up for it: none is lost, none counts twice, and bad outcomes are to requests what the gateway says they are.
    """
    before = dict(ledger.sources).get(source, (0.0,) * ledger.width)
    gained = max(now - then for now, then in zip(counts[1:], before[1:], strict=True))
    return (max(counts[0], before[0] + gained), *counts[1:])


def _counts(arm: ArmCounts) -> Counts:
    # An overdue request is an error before it counts as a request that was answered.
    requests = max(arm.requests, arm.errors, arm.slow)
    return tuple(float(each) for each in (requests, arm.errors, arm.slow, arm.bad, arm.clients, arm.client_errors))
