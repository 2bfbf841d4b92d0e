"""The live statistics of one part of a rollout (shadow, a canary step, guard): counts in, verdicts out.

    reports of the gateways (cumulative) -> ledgers (increments) -> sequential tests -> a row for each metric

The state is one document, stored in a ConfigMap of the endpoint: ledgers and tests are written together, so an operator
that restarts neither forgets nor counts twice. Methods, sources and assumptions: finetune_stats, docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from finetune_api.modelendpoint import AnalysisRow, LiveMetric
from finetune_api.observations import ArmCounts as ReportedArm
from finetune_api.observations import Observations, PairCounts
from finetune_operator.endpoint.reports import source_of
from finetune_operator.ports import Report
from finetune_stats.betting import BINS, BoundedMeanState, add, bounded_mean_from_dict
from finetune_stats.edetector import DetectorState, detector_from_dict, watch_paired, watch_rate, watch_two_rates
from finetune_stats.eprocess import TwoRateState, two_rate_from_dict, update
from finetune_stats.ledger import Ledger, absorb, ledger_from_dict
from finetune_stats.two_rates import ArmCounts, Block

STATE_VERSION = 1
Part = Literal["Shadow", "Canary", "Guard"]
_SMALLEST_LIMIT = 1e-3
_LARGEST_LIMIT = 0.95


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is compared: the requests of these epochs, rules and variants."""

    part: Part
    key: str
    """Names the part of the rollout: another key begins anew."""
    candidate: str
    stable: str | None
    rules: tuple[str, ...]
    """Rules under which clients' requests go to the candidate."""
    since_epoch: int
    metrics: tuple[LiveMetric, ...]
    alpha: Mapping[str, float]
    """Share of each metric."""
    guard_seconds: float = 0.0
    reference: Mapping[str, float] = field(default_factory=dict)
    """For guard: the stable version's rate of each metric, frozen before the promotion."""


@dataclass(frozen=True, kw_only=True)
class MetricState:
    """The tests of one metric. Those that the part does not use stay None."""

    pairs: BoundedMeanState | None = None
    arms: tuple[tuple[str, TwoRateState], ...] = ()
    """By rule."""
    rate: DetectorState | None = None
    two_rates: DetectorState | None = None
    paired: DetectorState | None = None


@dataclass(frozen=True, kw_only=True)
class AnalysisState:
    """All that was counted and concluded since the part began."""

    key: str
    pair_ledgers: tuple[tuple[str, Ledger], ...] = ()
    """By metric and source of prompts."""
    arm_ledgers: tuple[tuple[str, Ledger], ...] = ()
    """By rule and variant: requests, errors, slow, bad."""
    probe_gateway: str | None = None
    """The one whose probes count: all gateways send the same prompts."""
    metrics: tuple[tuple[str, MetricState], ...] = ()
    clock: float = 0.0
    """Seconds of the guard window that the detectors have seen."""
    rates: tuple[tuple[str, float, float], ...] = ()
    """Of stable, over the rollout so far: metric, bad, requests."""

    def metric(self, name: str) -> MetricState:
        """The tests of a metric."""
        return dict(self.metrics).get(name, MetricState())

    def reference(self) -> dict[str, float]:
        """Stable's rate of each metric that was measured on at least 20 requests."""
        return {name: bad / total for name, bad, total in self.rates if total >= 20}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "version": STATE_VERSION,
            "key": self.key,
            "pairLedgers": {name: ledger.to_dict() for name, ledger in self.pair_ledgers},
            "armLedgers": {name: ledger.to_dict() for name, ledger in self.arm_ledgers},
            "probeGateway": self.probe_gateway,
            "clock": self.clock,
            "rates": [list(each) for each in self.rates],
            "metrics": {name: _metric_document(state) for name, state in self.metrics},
        }


def state_from_dict(document: Mapping[str, Any]) -> AnalysisState:
    """Read back `AnalysisState.to_dict`. Raises ValueError for another version or a malformed document."""
    if document.get("version") != STATE_VERSION:
        raise ValueError(f"the analysis has version {document.get('version')}; this operator reads {STATE_VERSION}")
    try:
        return AnalysisState(
            key=str(document["key"]),
            pair_ledgers=_ledgers(document["pairLedgers"]),
            arm_ledgers=_ledgers(document["armLedgers"]),
            probe_gateway=document["probeGateway"],
            clock=float(document["clock"]),
            rates=tuple((str(name), float(bad), float(total)) for name, bad, total in document["rates"]),
            metrics=tuple((name, _metric_from(each)) for name, each in sorted(document["metrics"].items())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the analysis cannot be read: {error!r}") from error


def begun(*, key: str, before: AnalysisState | None) -> AnalysisState:
    """The state of a part that begins; what stable showed in earlier parts of the rollout is kept."""
    return AnalysisState(key=key, rates=before.rates if before is not None else ())


def advance(
    state: AnalysisState, *, scope: Scope, reports: tuple[Report, ...], elapsed_seconds: float
) -> AnalysisState:
    """Take in what is new in the reports. The same reports again change nothing.

    `elapsed_seconds`: of the guard window, since it began; the detectors' clock.
    """
    state, pairs = _new_pairs(state, scope=scope, reports=reports)
    state, arms = _new_arms(state, scope=scope, reports=reports)
    if not pairs and not arms:
        return state
    clock = max(elapsed_seconds - state.clock, 1e-3)
    metrics = []
    for metric in scope.metrics:
        tests = state.metric(metric.name)
        tests = _with_pairs(tests, counts=pairs.get(metric.name), metric=metric, scope=scope, clock=clock)
        tests = _with_arms(tests, arms=arms, metric=metric, scope=scope, clock=clock)
        metrics.append((metric.name, tests))
    return replace(
        state,
        metrics=tuple(metrics),
        clock=state.clock + clock if scope.part == "Guard" else state.clock,
        rates=_rates(state, scope=scope, pairs=pairs, arms=arms),
    )


# -- verdicts ---------------------------------------------------------------------------------------------------------


def rows(state: AnalysisState, *, scope: Scope, needed: int) -> list[AnalysisRow]:
    """A row for each metric. Fail: a regression is proven. Pass: `needed` samples are there, none is proven, and the
    difference that was seen is within the margin. Else Inconclusive."""
    return [_row(state.metric(metric.name), metric=metric, scope=scope, needed=needed) for metric in scope.metrics]


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


# -- counts -----------------------------------------------------------------------------------------------------------


def _new_pairs(
    state: AnalysisState, *, scope: Scope, reports: tuple[Report, ...]
) -> tuple[AnalysisState, dict[str, tuple[float, float, float]]]:
    """New pairs by metric: pairs, bad with the candidate only, bad with stable only."""
    state = _with_probe_gateway(state, scope=scope, reports=reports)
    ledgers = dict(state.pair_ledgers)
    new: dict[str, tuple[float, float, float]] = {}
    for report in reports:
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


def _with_probe_gateway(state: AnalysisState, *, scope: Scope, reports: tuple[Report, ...]) -> AnalysisState:
    """Choose whose probes count, once: the first gateway that has any. Its end ends the counting of probes."""
    if state.probe_gateway is not None:
        return state
    for report in sorted(reports, key=source_of):
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


def _new_arms(
    state: AnalysisState, *, scope: Scope, reports: tuple[Report, ...]
) -> tuple[AnalysisState, dict[tuple[str, str], tuple[float, ...]]]:
    """New requests by rule and variant: requests, errors, slow, bad."""
    ledgers = dict(state.arm_ledgers)
    new: dict[tuple[str, str], tuple[float, ...]] = {}
    for report in reports:
        sums: dict[tuple[str, str], list[float]] = {}
        for arm in report.observations.arms:
            if arm.rule in scope.rules and arm.epoch >= scope.since_epoch:
                total = sums.setdefault((arm.rule, arm.variant), [0.0] * 4)
                for index, count in enumerate(_counts(arm)):
                    total[index] += count
        for (rule, variant), counts in sums.items():
            if variant not in (scope.candidate, scope.stable):
                continue
            name = f"{rule}/{variant}"
            ledgers[name], gained = absorb(
                ledgers.get(name, Ledger(width=4)), source=source_of(report), cumulative=counts
            )
            if any(gained):
                old = new.get((rule, variant), (0.0,) * 4)
                new[rule, variant] = tuple(a + b for a, b in zip(old, gained, strict=True))
    return replace(state, arm_ledgers=tuple(sorted(ledgers.items()))), new


def _counts(arm: ReportedArm) -> tuple[float, float, float, float]:
    # An overdue request is an error before it counts as a request that was answered.
    return float(max(arm.requests, arm.errors, arm.slow)), float(arm.errors), float(arm.slow), float(arm.bad)


def _bad_of(counts: tuple[float, ...], *, metric: str) -> ArmCounts:
    requests, errors, slow, bad = counts
    count = {"error_rate": errors, "latency_seconds": slow, "quality": bad}[metric]
    return ArmCounts(bad=min(count, requests), total=requests)


# -- tests ------------------------------------------------------------------------------------------------------------


def _with_pairs(
    tests: MetricState,
    *,
    counts: tuple[float, float, float] | None,
    metric: LiveMetric,
    scope: Scope,
    clock: float,
) -> MetricState:
    if counts is None:
        return tests
    histogram = _histogram(counts)
    alpha = scope.alpha[metric.name]
    if scope.part == "Guard":
        detector = tests.paired or _detector("Paired", limit=metric.max_regression, alpha=alpha, scope=scope)
        return replace(tests, paired=watch_paired(detector, histogram=histogram, clock=clock))
    return replace(tests, pairs=add(tests.pairs or BoundedMeanState(alpha=alpha), histogram=histogram))


def _with_arms(
    tests: MetricState,
    *,
    arms: Mapping[tuple[str, str], tuple[float, ...]],
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
            candidate=_bad_of(candidate, metric=metric.name) if candidate else ArmCounts(),
            stable=_bad_of(stable, metric=metric.name) if stable else ArmCounts(),
        )
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


def _histogram(counts: tuple[float, float, float]) -> tuple[float, ...]:
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
    pairs: Mapping[str, tuple[float, float, float]],
    arms: Mapping[tuple[str, str], tuple[float, ...]],
) -> tuple[tuple[str, float, float], ...]:
    """What stable has shown before the promotion: the reference of the guard."""
    if scope.part == "Guard":
        return state.rates
    known = {name: (bad, total) for name, bad, total in state.rates}
    for metric in scope.metrics:
        bad, total = known.get(metric.name, (0.0, 0.0))
        for (_, variant), counts in arms.items():
            if variant == scope.stable:
                arm = _bad_of(counts, metric=metric.name)
                bad, total = bad + arm.bad, total + arm.total
        if total > 0:
            known[metric.name] = (bad, total)
    return tuple((name, bad, total) for name, (bad, total) in sorted(known.items()))


# -- documents --------------------------------------------------------------------------------------------------------


def _metric_document(state: MetricState) -> dict[str, Any]:
    document: dict[str, Any] = {"arms": {rule: arms.to_dict() for rule, arms in state.arms}}
    for name in ("pairs", "rate", "two_rates", "paired"):
        test = getattr(state, name)
        if test is not None:
            document[name] = test.to_dict()
    return document


def _metric_from(document: Mapping[str, Any]) -> MetricState:
    def detector(name: str) -> DetectorState | None:
        return detector_from_dict(document[name]) if name in document else None

    return MetricState(
        pairs=bounded_mean_from_dict(document["pairs"]) if "pairs" in document else None,
        arms=tuple((rule, two_rate_from_dict(each)) for rule, each in sorted(document["arms"].items())),
        rate=detector("rate"),
        two_rates=detector("two_rates"),
        paired=detector("paired"),
    )


def _ledgers(document: Mapping[str, Any]) -> tuple[tuple[str, Ledger], ...]:
    return tuple((name, ledger_from_dict(each)) for name, each in sorted(document.items()))
