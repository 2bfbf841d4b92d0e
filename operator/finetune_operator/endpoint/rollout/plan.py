"""A rollout as it was resolved when it began, kept in status.plan: neither an edit of the spec nor an upgrade of the
operator changes the rules for a candidate that is under way.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import ValidationError

from finetune_api.base import ApiModel, first_problem
from finetune_api.modelendpoint import LiveMetric, ModelEndpointSpec, PlanStatus, Rollout, Step

PLAN_VERSION: Literal[1] = 1
ALPHA = 0.05
"""Probability that a rollout of a candidate that is exactly at the margin is called a regression, ever."""
DEFAULT_METRICS = (
    LiveMetric(name="error_rate", max_regression=0.01),
    LiveMetric(name="quality", max_regression=0.05),
)
CLIENT_ERRORS = LiveMetric(name="client_error_rate", max_regression=0.05)
"""Judged in any case: who writes metrics thinks of what may get a little worse, not of one that refuses everybody."""
_MATCH_PERCENT = 80.0
"""Of the users that a step targets; the rest stay on stable. Who is targeted is not drawn at random, so only others of
the same kind are a fair comparison."""


class PlannedShadow(ApiModel):
    """The shadow, resolved."""

    percent: float
    min_samples: int
    max_duration_seconds: int
    timeout_seconds: float
    probe_rate: float | None = None
    """Probes per second; None: no probes."""


class PlannedStep(ApiModel):
    """A canary step, resolved."""

    name: str
    match: dict[str, str] | None = None
    percent: float
    """Of the users that the step is about."""
    min_samples: int
    min_duration_seconds: int


class RolloutPlan(ApiModel):
    """Everything about a rollout, every default resolved. Durations in seconds."""

    plan_version: Literal[1] = PLAN_VERSION
    progress_deadline_seconds: int
    supersede: bool
    shadow: PlannedShadow | None = None
    steps: list[PlannedStep]
    approval: Literal["Automatic", "Manual"]
    guard_seconds: int
    holdback_percent: float
    metrics: list[LiveMetric]
    on_regression: Literal["RollBack", "Pause"]
    on_inconclusive: Literal["Hold", "Reject", "Proceed"]
    alpha: float = ALPHA
    fast: bool = False
    """Back to a version that was stable before: no shadow, no steps, no approval."""

    @property
    def latency_limit(self) -> float | None:
        """Seconds, where latency is judged."""
        return next((metric.limit for metric in self.metrics if metric.name == "latency_seconds"), None)

    @property
    def probe_rate(self) -> float | None:
        """Probes per second."""
        return self.shadow.probe_rate if self.shadow else None


def resolve(*, spec: ModelEndpointSpec, fast: bool) -> RolloutPlan:
    """The plan of a rollout that begins now."""
    rollout = spec.rollout or Rollout()
    guard = rollout.guard
    return RolloutPlan(
        progress_deadline_seconds=rollout.progress_deadline_seconds or 1800,
        supersede=rollout.supersede is not False,
        shadow=None if fast else _shadow(rollout),
        steps=[] if fast else [_step(step) for step in rollout.steps or ()],
        approval="Automatic" if fast else rollout.approval or "Automatic",
        guard_seconds=3600 if guard is None or guard.duration_seconds is None else guard.duration_seconds,
        holdback_percent=(guard.holdback_percent or 0.0) if guard else 0.0,
        metrics=_metrics(rollout),
        on_regression=rollout.on_regression or "RollBack",
        on_inconclusive=rollout.on_inconclusive or "Hold",
        fast=fast,
    )


def stored(plan: RolloutPlan) -> PlanStatus:
    """The plan as the status keeps it."""
    document = plan.to_dict()
    text = json.dumps(document, sort_keys=True)
    return PlanStatus(version=PLAN_VERSION, hash=hashlib.sha256(text.encode()).hexdigest()[:16], resolved=document)


def read_plan(status: PlanStatus) -> RolloutPlan | str:
    """A stored plan, or why this operator cannot follow it."""
    if status.version != PLAN_VERSION:
        return f"the rollout's plan has version {status.version}, this operator reads version {PLAN_VERSION}"
    try:
        return RolloutPlan.model_validate(status.resolved)
    except ValidationError as error:
        return f"the rollout's plan cannot be read by this operator: {first_problem(error)}"


def _metrics(rollout: Rollout) -> list[LiveMetric]:
    metrics = list(rollout.metrics or DEFAULT_METRICS)
    named = any(metric.name == CLIENT_ERRORS.name for metric in metrics)
    return metrics if named else [*metrics, CLIENT_ERRORS]


def _shadow(rollout: Rollout) -> PlannedShadow | None:
    shadow = rollout.shadow
    if shadow is None or (shadow.percent == 0 and shadow.probe is None):
        return None
    return PlannedShadow(
        percent=shadow.percent,
        min_samples=shadow.min_samples or 100,
        max_duration_seconds=shadow.max_duration_seconds or 3600,
        timeout_seconds=shadow.timeout_seconds or 30,
        probe_rate=shadow.probe.rate_per_second if shadow.probe else None,
    )


def _step(step: Step) -> PlannedStep:
    return PlannedStep(
        name=step.name,
        match=dict(step.match.header) if step.match else None,
        percent=step.percent if step.percent is not None else _MATCH_PERCENT,
        min_samples=step.min_samples or 100,
        min_duration_seconds=step.min_duration_seconds or 0,
    )
