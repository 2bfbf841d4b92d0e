"""The table of restarts: cause -> what it is told by -> what is done -> which budget pays.

`CAUSES` is that table; docs/restarts.md shows it to users. Which cause it was is judged by `evidence.cause_of_end`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from finetune_api.finetunejob import Restarts
from finetune_operator.job.plan import ResolvedPlan


class Budget(StrEnum):
    """What pays for another attempt."""

    PREEMPTIONS = "maxPreemptions"
    """Interruptions from outside: failurePolicy.maxPreemptions."""
    FAILURES = "maxFailures"
    """The run's own failures: failurePolicy.maxFailures."""
    NONE = "none"
    """There is no other attempt."""


class Cause(StrEnum):
    """Why an attempt ended without a result. The value is the condition's reason, unless the container gave one."""

    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    POD_DELETED = "PodDeleted"
    JOB_DELETED = "JobDeleted"
    RESULT_LOST = "ResultLost"
    OUT_OF_MEMORY = "OutOfMemory"
    HUNG = "Hung"
    CONTAINER_FAILED = "ContainerFailed"
    NOT_STARTED = "NotStarted"
    PERMANENT = "PermanentFailure"
    NOT_FINITE = "LossNotFinite"
    IMAGE = "ImagePullFailed"
    CONTAINER_CONFIG = "ContainerConfigInvalid"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    cause: Cause
    evidence: str
    budget: Budget


CAUSES: tuple[Row, ...] = (
    Row(
        cause=Cause.PREEMPTED,
        evidence="exit code 75, a DisruptionTarget condition (eviction, scheduler preemption, node drain), or a pod "
        "that its node ended or never took in",
        budget=Budget.PREEMPTIONS,
    ),
    Row(
        cause=Cause.NODE_LOST,
        evidence="a DisruptionTarget condition by the taint manager or the pod garbage collector",
        budget=Budget.PREEMPTIONS,
    ),
    Row(
        cause=Cause.POD_DELETED,
        evidence="a pod is being deleted, or is gone, and neither the operator nor its Job did it",
        budget=Budget.PREEMPTIONS,
    ),
    Row(cause=Cause.JOB_DELETED, evidence="the attempt's Job is gone", budget=Budget.PREEMPTIONS),
    Row(
        cause=Cause.RESULT_LOST,
        evidence="the Job is complete, but the pod with the result is gone",
        budget=Budget.PREEMPTIONS,
    ),
    Row(
        cause=Cause.OUT_OF_MEMORY,
        evidence="kubelet says OOMKilled, or the container says OutOfMemory",
        budget=Budget.FAILURES,
    ),
    Row(
        cause=Cause.HUNG,
        evidence="training was heard from, and then was silent for failurePolicy.hangSeconds while all its pods run",
        budget=Budget.FAILURES,
    ),
    Row(
        cause=Cause.CONTAINER_FAILED,
        evidence="any other exit code, a result that cannot be read, or an init container that failed",
        budget=Budget.FAILURES,
    ),
    Row(
        cause=Cause.NOT_STARTED,
        evidence="a pod has a node but no running container for an hour (operator setting)",
        budget=Budget.FAILURES,
    ),
    Row(
        cause=Cause.PERMANENT,
        evidence="exit code 65 (bad data), 66 (input not found) or 78 (bad configuration)",
        budget=Budget.NONE,
    ),
    Row(
        cause=Cause.NOT_FINITE,
        evidence="the container says LossNotFinite: the same data from the same checkpoint would do it again",
        budget=Budget.NONE,
    ),
    Row(
        cause=Cause.IMAGE,
        evidence="the image cannot be pulled for ten minutes (operator setting)",
        budget=Budget.NONE,
    ),
    Row(
        cause=Cause.CONTAINER_CONFIG,
        evidence="kubelet cannot make the container for ten minutes (operator setting), e.g. a Secret is missing",
        budget=Budget.NONE,
    ),
)
_BUDGETS = {row.cause: row.budget for row in CAUSES}
_INTERRUPTIONS = frozenset(str(row.cause) for row in CAUSES if row.budget is Budget.PREEMPTIONS)

CALM_SECONDS = 600.0
"""An attempt that ran for this long has shown that it can: what ends it then begins no series."""
_MOST_NODES = 8
_FIRST_DELAY_SECONDS = 10.0
_LONGEST_DELAY_SECONDS = 300.0


def budget_of(cause: Cause) -> Budget:
    """What pays for another attempt after this cause."""
    return _BUDGETS[cause]


def left(*, budget: Budget, used: Restarts, plan: ResolvedPlan) -> int:
    """How many more attempts the budget pays for."""
    if budget is Budget.PREEMPTIONS:
        return plan.max_preemptions - used.preemptions
    if budget is Budget.FAILURES:
        return plan.max_failures - used.failures
    return 0


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
