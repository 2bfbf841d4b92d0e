"""Where a rollout is: small states, read once from the recorded facts, each with what it needs and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.modelendpoint import EndpointPhase, ModelEndpointStatus, RolloutStage, ServedVersion, StepStatus
from finetune_operator.endpoint.rollout.plan import PlannedShadow, PlannedStep, RolloutPlan, read_plan

PHASES: dict[RolloutStage, EndpointPhase] = {
    "Starting": "Shadowing",
    "Shadow": "Shadowing",
    "Canary": "Canary",
    "Approval": "AwaitingApproval",
    "Promoting": "Promoting",
    "Guard": "Guarding",
    "RollingBack": "RollingBack",
}
"""The endpoint's phase in each stage, where nobody has paused it."""


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Nothing is under way."""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """Another version of the operator planned what is under way; `problem` says so."""

    problem: str


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    plan: RolloutPlan
    step: StepStatus


@dataclass(frozen=True, kw_only=True)
class Starting(_UnderWay):
    """The servers of a candidate are being started."""

    candidate: ServedVersion


@dataclass(frozen=True, kw_only=True)
class Shadowing(_UnderWay):
    """A candidate answers copies of requests."""

    candidate: ServedVersion
    shadow: PlannedShadow

    @property
    def due(self) -> datetime:
        """When it is over, decided or not."""
        return self.step.start_time + timedelta(seconds=self.shadow.max_duration_seconds)

    @property
    def doing(self) -> str:
        """What is going on, in words that stay the same while it does."""
        return f"{self.candidate.name} answers copies of requests"


@dataclass(frozen=True, kw_only=True)
class Canary(_UnderWay):
    """A candidate answers some of the requests."""

    candidate: ServedVersion
    planned: PlannedStep

    @property
    def doing(self) -> str:
        """What is going on, in words that stay the same while it does."""
        return f"{self.candidate.name} answers requests of step {self.step.name} ({self.step.percent:g} %)"


@dataclass(frozen=True, kw_only=True)
class AwaitingApproval(_UnderWay):
    """A candidate has passed all steps, and a person lets it go on."""

    candidate: ServedVersion

    @property
    def doing(self) -> str:
        """What is going on, in words that stay the same while it does."""
        return f"{self.candidate.name} has passed all steps"


@dataclass(frozen=True, kw_only=True)
class Promoting(_UnderWay):
    """All gateways are being told of the new stable version."""

    stable: ServedVersion
    previous: ServedVersion | None


@dataclass(frozen=True, kw_only=True)
class Guarding(_UnderWay):
    """The new stable version is watched; the one before stays warm."""

    stable: ServedVersion
    previous: ServedVersion | None


@dataclass(frozen=True, kw_only=True)
class RollingBack(_UnderWay):
    """All gateways are being told that a version is given up."""


Watched = Shadowing | Canary | AwaitingApproval
Trying = Starting | Watched
State = Idle | Unreadable | Trying | Promoting | Guarding | RollingBack


def state_of(status: ModelEndpointStatus) -> State:
    """What the recorded facts say. Raises ValueError for facts that no step of the machine leaves."""
    plan = read_plan(status.plan) if status.plan is not None else None
    if isinstance(plan, str):
        return Unreadable(problem=plan)
    step = status.step
    if step is None or plan is None:
        return Idle()
    if step.stage == "RollingBack":
        return RollingBack(plan=plan, step=step)
    if step.stage in ("Promoting", "Guard"):
        settled = Promoting if step.stage == "Promoting" else Guarding
        return settled(plan=plan, step=step, stable=_of(status.stable, step=step), previous=status.previous)
    candidate = _of(status.candidate, step=step)
    if step.stage == "Shadow" and plan.shadow is not None:
        return Shadowing(plan=plan, step=step, candidate=candidate, shadow=plan.shadow)
    if step.stage == "Canary":
        return Canary(plan=plan, step=step, candidate=candidate, planned=plan.steps[step.index])
    trying = Starting if step.stage == "Starting" else AwaitingApproval
    return trying(plan=plan, step=step, candidate=candidate)


def _of(version: ServedVersion | None, *, step: StepStatus) -> ServedVersion:
    if version is None:
        raise ValueError(
            f"status.step is at {step.stage}, and the version that it is about is not there; was it edited?"
        )
    return version
