"""The routes that a status calls for. Everything that gateways are told follows from recorded facts."""

from __future__ import annotations

from finetune_api.modelendpoint import ModelEndpointStatus, ServedVersion
from finetune_api.routes import Breaker, Judging, ProbeOrder, RouteRule, Routes, ShadowOrder, Variant
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.rollout.plan import PlannedStep, RolloutPlan

DEFAULT_RULE = "default"
_OVERDUE_SECONDS = 30.0
_OVERDUE_FACTOR = 2.0


def routes_of(
    observed: ObservedEndpoint, *, status: ModelEndpointStatus, plan: RolloutPlan | None, epoch: int
) -> Routes | None:
    """The routes of an epoch that this status calls for; None where there is nothing to route to."""
    if status.stable is None:
        return None
    endpoint = observed.endpoint
    served = [each for each in (status.stable, candidate_in_routes(status), status.previous) if each is not None]
    return Routes(
        epoch=epoch,
        endpoint=endpoint.metadata.name,
        model=endpoint.metadata.name,
        task=endpoint.spec.task,
        variants={each.uid: Variant(name=each.name, url=observed.server_urls[each.uid], ready=True) for each in served},
        stable=status.stable.uid,
        rules=_rules(status=status, stable=status.stable, plan=plan),
        shadow=_shadow(status=status, plan=plan),
        judging=Judging(latency_limit_seconds=plan.latency_limit if plan else None),
        sticky_salt=_salt(status),
    )


def candidate_in_routes(status: ModelEndpointStatus) -> ServedVersion | None:
    """The candidate, once it has been ready."""
    step = status.step
    if status.candidate is None or step is None or step.stage not in ("Shadow", "Canary", "Approval"):
        return None
    return status.candidate


def rules_with_candidate(*, status: ModelEndpointStatus, plan: RolloutPlan) -> tuple[str, ...]:
    """Names of the rules that send clients to the version that is watched."""
    step, stable = status.step, status.stable
    if step is None or stable is None:
        return ()
    if step.stage == "Guard":
        return (DEFAULT_RULE,)
    rules = _rules(status=status, stable=stable, plan=plan)
    return tuple(rule.name for rule in rules if _candidate_share(rule, status) > 0)


def same_content(one: Routes, other: Routes) -> bool:
    """Whether two routing tables differ in nothing but the epoch."""
    return one.model_copy(update={"epoch": 1}) == other.model_copy(update={"epoch": 1})


def _candidate_share(rule: RouteRule, status: ModelEndpointStatus) -> float:
    return rule.weights.get(status.candidate.uid, 0.0) if status.candidate else 0.0


def _rules(*, status: ModelEndpointStatus, stable: ServedVersion, plan: RolloutPlan | None) -> list[RouteRule]:
    previous, candidate = status.previous, candidate_in_routes(status)
    everyone = RouteRule(name=DEFAULT_RULE, weights={stable.uid: 100.0})
    if previous is not None and plan is not None:
        kept = plan.holdback_percent
        weights = {stable.uid: 100.0 - kept, previous.uid: kept} if kept else {stable.uid: 100.0}
        breaker = _breaker(plan)
        return [RouteRule(name=DEFAULT_RULE, weights=weights, fallback=previous.uid, breaker=breaker)]
    if candidate is None or plan is None or status.step is None or status.step.stage == "Shadow":
        return [everyone]
    done = plan.steps[: status.step.index + 1]
    rules = [_step_rule(step, stable=stable, candidate=candidate, plan=plan) for step in done if step.match]
    shares = [step for step in done if not step.match]
    if shares:
        last = _step_rule(shares[-1], stable=stable, candidate=candidate, plan=plan)
        everyone = last.model_copy(update={"name": DEFAULT_RULE})
    return [*rules, everyone]


def _step_rule(step: PlannedStep, *, stable: ServedVersion, candidate: ServedVersion, plan: RolloutPlan) -> RouteRule:
    weights = {candidate.uid: step.percent, stable.uid: 100.0 - step.percent}
    return RouteRule(
        name=step.name,
        match=step.match,
        weights={uid: weight for uid, weight in weights.items() if weight > 0},
        fallback=stable.uid,
        breaker=_breaker(plan),
    )


def _breaker(plan: RolloutPlan) -> Breaker:
    limit = plan.latency_limit
    return Breaker(overdue_seconds=_OVERDUE_FACTOR * limit if limit else _OVERDUE_SECONDS)


def _shadow(*, status: ModelEndpointStatus, plan: RolloutPlan | None) -> ShadowOrder | None:
    """Copies in the shadow stage; probes from then on to the end of the guard."""
    if plan is None or plan.shadow is None or status.stable is None or status.step is None:
        return None
    in_shadow, in_guard = status.step.stage == "Shadow", status.step.stage == "Guard"
    probe = ProbeOrder(rate_per_second=plan.shadow.probe_rate, repeat=in_guard) if plan.shadow.probe_rate else None
    candidate = candidate_in_routes(status)
    if candidate is not None:
        pair = candidate.uid, status.stable.uid
    elif status.previous is not None:
        pair = status.stable.uid, status.previous.uid
    else:
        return None
    if not in_shadow and probe is None:
        return None
    return ShadowOrder(
        candidate=pair[0],
        stable=pair[1],
        percent=plan.shadow.percent if in_shadow else 0.0,
        timeout_seconds=plan.shadow.timeout_seconds,
        probe=probe,
    )


def _salt(status: ModelEndpointStatus) -> str:
    """Keeps users where they are through the epochs of one rollout."""
    if status.candidate is not None:
        return status.candidate.uid
    return status.stable.uid if status.stable else ""
