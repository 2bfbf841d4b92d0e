"""What the live statistics say about the version that is watched now."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.modelendpoint import AnalysisRow, ModelEndpointStatus
from finetune_operator.endpoint.analysis import analysis
from finetune_operator.endpoint.analysis.rows import rows
from finetune_operator.endpoint.analysis.state import AnalysisState, Part, Scope
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.rollout.plan import CLIENT_ERRORS, RolloutPlan
from finetune_operator.endpoint.rollout.routing import rules_with_candidate
from finetune_stats.budget import allocate

_DROPPED_SHARE = 0.5
"""A shadow that drops more than this says more about the load than about the candidate."""


class Judgement:
    """The live statistics of this moment: rows, and what follows from them."""

    def __init__(self, *, state: AnalysisState | None, rows: list[AnalysisRow], trip: str | None) -> None:
        self.state = state
        self.rows = rows
        self.regression = trip or next((f"{row.metric}: {row.reason}" for row in rows if row.verdict == "Fail"), None)
        counted = [row.samples for row in rows if row.metric != CLIENT_ERRORS.name]
        self.samples = min(counted, default=0)
        self.passed = bool(rows) and self.regression is None and all(row.verdict == "Pass" for row in rows)
        waiting = next((row for row in rows if row.verdict == "Inconclusive"), None)
        self.missing = f"{waiting.metric}: {waiting.reason}" if waiting is not None else "no samples yet"


def judge(*, observed: ObservedEndpoint, plan: RolloutPlan) -> Judgement:
    """Take in what the gateways reported, and look at it."""
    status = observed.endpoint.status
    scope = scope_of(observed=observed, plan=plan)
    if scope is None or status.step is None:
        return Judgement(state=None, rows=[], trip=None)
    state = observed.analysis
    if state is None or state.key != scope.key:
        state = analysis.begun(scope=scope, before=_of_this_rollout(state, status), gateways=observed.gateways)
    state = analysis.referred(state, scope=scope, gateways=observed.gateways)
    scope = replace(scope, reference=state.reference())
    elapsed = (observed.now - status.step.start_time).total_seconds()
    state = analysis.advance(state, scope=scope, gateways=observed.gateways, elapsed_seconds=elapsed)
    found = rows(state, scope=scope, needed=status.step.needed)
    return Judgement(state=state, rows=found, trip=_trip(observed=observed, scope=scope))


def scope_of(*, observed: ObservedEndpoint, plan: RolloutPlan) -> Scope | None:
    """What is compared now; None where nothing is."""
    status = observed.endpoint.status
    step, part = status.step, _part_of(status, plan)
    if step is None or part is None or status.stable is None:
        return None
    watched = status.stable if part == "Guard" else status.candidate
    other = status.previous if part == "Guard" else status.stable
    if watched is None:
        return None
    # Approval goes on with the analysis of the step before.
    where = f"{part}/{step.index if part == 'Canary' else 0}"
    shares = allocate(
        alpha=plan.alpha,
        steps={str(number): 1.0 for number in range(_parts(plan))},
        metrics={metric.name: 1.0 for metric in plan.metrics},
    )
    return Scope(
        part=part,
        key=f"{watched.uid}/{where}/{step.since_epoch}",
        candidate=watched.uid,
        stable=other.uid if other else None,
        rules=rules_with_candidate(status=status, plan=plan),
        since_epoch=step.since_epoch,
        metrics=tuple(plan.metrics),
        alpha={metric.name: shares["0", metric.name] for metric in plan.metrics},
        guard_seconds=float(plan.guard_seconds),
    )


def shadow_problem(observed: ObservedEndpoint) -> str | None:
    """Why a shadow says too little, in words that stay the same while it does; None: it does not."""
    step = observed.endpoint.status.step
    since = step.since_epoch if step else 0
    counts = [
        each for report in observed.gateways.reports for each in report.observations.shadow if each.epoch >= since
    ]
    sampled, dropped = sum(each.sampled for each in counts), sum(each.dropped for each in counts)
    if sampled and dropped > _DROPPED_SHARE * sampled:
        return (
            f"more than {100 * _DROPPED_SHARE:g} % of the shadow's requests are dropped under load; lower "
            "shadow.percent, or give the candidate more replicas"
        )
    return None


def _part_of(status: ModelEndpointStatus, plan: RolloutPlan) -> Part | None:
    stage = status.step.stage if status.step else None
    if stage == "Approval":
        return "Canary" if plan.steps else ("Shadow" if plan.shadow else None)
    if stage == "Guard":
        return "Guard" if status.previous is not None else None
    if stage == "Shadow":
        return "Shadow"
    return "Canary" if stage == "Canary" else None


def _parts(plan: RolloutPlan) -> int:
    return (1 if plan.shadow else 0) + len(plan.steps) + 1


def _trip(*, observed: ObservedEndpoint, scope: Scope) -> str | None:
    """Whether a gateway has left the watched version by itself. That is latched: its breaker forgets with the epoch."""
    trip = next(observed.gateways.trips(variants=[scope.candidate], since_epoch=scope.since_epoch), None)
    return f"a gateway left it: {trip.reason}" if trip is not None else None


def _of_this_rollout(state: AnalysisState | None, status: ModelEndpointStatus) -> AnalysisState | None:
    watched = status.candidate or status.stable
    return state if state is not None and watched is not None and state.key.startswith(f"{watched.uid}/") else None
