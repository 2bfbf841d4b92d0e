"""What happens to the pods of an attempt: one value for each kind of fate, told as Kubernetes tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from finetune_api.results import EvaluateResult, ExitCode, Failure, PrepareResult, TrainResult


@dataclass(frozen=True, kw_only=True)
class Succeed:
    """Run for a while, report, end well with this result."""

    result: PrepareResult | TrainResult | EvaluateResult
    ticks: int = 2
    reports: bool = True
    """Its reports get through to the operator."""
    probed: bool = True
    """Its readiness probe can tell that it is at work."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """Run for a while, end with this exit code."""

    code: int
    failure: Failure | None = None
    reason: str = "Error"
    """Kubelet's word for it."""
    ticks: int = 2
    pod: int = 0
    """The pod that ends so; the others notice, or are told to stop."""


@dataclass(frozen=True, kw_only=True)
class Disrupt:
    """Run for a while, then somebody else ends a pod."""

    how: Literal["Evicted", "Deleted", "NodeLost", "JobDeleted"]
    ticks: int = 2
    saves: bool = True
    """The grace period is long enough for a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Hang:
    """Begin, say so, and never do anything again."""

    reports: bool = True


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Never start: no node, no image, no Secret."""

    how: Literal["Unschedulable", "ImagePullBackOff", "CreateContainerConfigError", "ContainerCreating", "NoPods"]
    message: str = "0/2 nodes are available"
    """The scheduler's."""


Fate = Succeed | Exit | Disrupt | Hang | Wait


@dataclass(frozen=True, kw_only=True)
class Script:
    """The fate of each attempt of each stage; attempts that are not named succeed."""

    fates: dict[tuple[str, int], Fate] = field(default_factory=dict)
    succeed: dict[str, PrepareResult | TrainResult | EvaluateResult] = field(default_factory=dict)

    def fate(self, *, stage: str, attempt: int) -> Fate:
        """What happens to this attempt."""
        return self.fates.get((stage, attempt)) or Succeed(result=self.succeed[stage])


def stopped(*, step: int) -> Failure:
    """What a trainer says that saved its state before it stopped."""
    return Failure(reason="StoppedAfterCheckpoint", message=f"stopped after step {step}", checkpoint_step=step)


OUT_OF_MEMORY = Exit(code=137, reason="OOMKilled")
BAD_DATA = Exit(
    code=ExitCode.BAD_DATA,
    failure=Failure(reason="TooManyBadRows", message="tickets.jsonl line 7: messages is missing"),
)
CRASH = Exit(code=ExitCode.INTERNAL_ERROR, failure=Failure(reason="InternalError", message="RuntimeError: oh"))
