"""The table of restarts: cause -> what it is told by -> which budget pays. docs/restarts.md shows it to users.

Which cause it was is judged by `evidence.cause_of_end`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from finetune_api.finetunejob import Restarts


class Budget(StrEnum):
    """What pays for another attempt."""

    PREEMPTIONS = "maxPreemptions"
    """Interruptions from outside: failurePolicy.maxPreemptions."""
    FAILURES = "maxFailures"
    """The run's own failures: failurePolicy.maxFailures."""
    NONE = "none"
    """There is no other attempt."""


class Cause(StrEnum):
    """Why an attempt ended without a result, and what pays for another one. The value is the condition's reason, unless
    the container gave one."""

    budget: Budget

    def __new__(cls, value: str, budget: Budget) -> Self:
        """A member of these two."""
        member = str.__new__(cls, value)
        member._value_, member.budget = value, budget
        return member

    PREEMPTED = "Preempted", Budget.PREEMPTIONS
    """Exit code 75, a DisruptionTarget condition (eviction, scheduler preemption, node drain), or a pod that its node
    ended or never took in."""
    NODE_LOST = "NodeLost", Budget.PREEMPTIONS
    """A DisruptionTarget condition by the taint manager or the pod garbage collector."""
    POD_DELETED = "PodDeleted", Budget.PREEMPTIONS
    """A pod is being deleted, or is gone, and neither the operator nor its Job did it."""
    JOB_DELETED = "JobDeleted", Budget.PREEMPTIONS
    """The attempt's Job is gone."""
    RESULT_LOST = "ResultLost", Budget.PREEMPTIONS
    """The Job is complete, but the pod with the result is gone."""
    OUT_OF_MEMORY = "OutOfMemory", Budget.FAILURES
    """Kubelet says OOMKilled, or the container says OutOfMemory."""
    HUNG = "Hung", Budget.FAILURES
    """Training was heard from, and then was silent for failurePolicy.hangSeconds while all its pods run."""
    CONTAINER_FAILED = "ContainerFailed", Budget.FAILURES
    """Any other exit code, a result that cannot be read, or an init container that failed."""
    NOT_STARTED = "NotStarted", Budget.FAILURES
    """A pod has a node but no running container for an hour (operator setting)."""
    PERMANENT = "PermanentFailure", Budget.NONE
    """Exit code 65 (bad data), 66 (input not found) or 78 (bad configuration)."""
    NOT_FINITE = "LossNotFinite", Budget.NONE
    """The container says so: the same data from the same checkpoint would do it again."""
    IMAGE = "ImagePullFailed", Budget.NONE
    """The image cannot be pulled for ten minutes (operator setting)."""
    CONTAINER_CONFIG = "ContainerConfigInvalid", Budget.NONE
    """Kubelet cannot make the container for ten minutes (operator setting), e.g. a Secret is missing."""


_INTERRUPTIONS = frozenset(str(cause) for cause in Cause if cause.budget is Budget.PREEMPTIONS)
CALM_SECONDS = 600.0
"""An attempt that ran for this long has shown that it can: what ends it then begins no series."""
_MOST_NODES = 8
_FIRST_DELAY_SECONDS = 10.0
_LONGEST_DELAY_SECONDS = 300.0


def used_of(budget: Budget, used: Restarts) -> int:
    """How many attempts a budget has paid for."""
    return used.preemptions if budget is Budget.PREEMPTIONS else used.failures


def charged(*, budget: Budget, used: Restarts) -> Restarts:
    """The count with one more attempt paid for."""
    if budget is Budget.PREEMPTIONS:
        return used.model_copy(update={"preemptions": used.preemptions + 1})
    return used.model_copy(update={"failures": used.failures + 1})


def in_series(*, used: Restarts, ran_seconds: float, node: str) -> Restarts:
    """The count of attempts that ended one soon after another, and where, with one more end. `node`: to be avoided."""
    rapid = used.rapid + 1 if ran_seconds < CALM_SECONDS else 0
    before = used.nodes if rapid else []
    nodes = [*before, node][-_MOST_NODES:] if node else before
    return used.model_copy(update={"rapid": rapid, "nodes": nodes})


def delay_seconds(*, reason: str, used: Restarts) -> float:
    """How long the next attempt waits: after failures twice as long each time. Interruptions are no one's fault and
    cost no time, unless they come one soon after another, whatever they are."""
    count = max(0 if reason in _INTERRUPTIONS else max(used.failures, 1), used.rapid - 1)
    return min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(count - 1, 10)) if count > 0 else 0.0


def steps_lost(*, step: int | None, checkpoint_step: int | None, resume: bool) -> int:
    """Optimiser steps that the next attempt does again: those since the newest checkpoint."""
    if step is None:
        return 0
    return max(0, step - (checkpoint_step or 0 if resume else 0))
