"""Conditions by the rules of kstatus, so that kubectl wait, Flux and Argo CD understand a job without knowing it.

Exactly one of Ready, Reconciling and Stalled is true. Reconciling, Stalled and Suspended exist only while they are
true. `lastTransitionTime` moves only when a condition's status flips.
https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.base import Condition
from finetune_api.finetunejob import STAGES, FineTuneJobStatus
from finetune_operator.controller import State
from finetune_operator.job.stages import CONDITION_OF_STAGE

MAXIMUM_MESSAGE = 4096


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How the object is, in one of three states."""

    state: State
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    type: str
    status: Literal["True", "False"]
    reason: str
    message: str = ""


def conditions(
    *, status: FineTuneJobStatus, summary: Summary, suspended: bool, generation: int, now: datetime
) -> list[Condition]:
    """The conditions of a status whose stages and evaluation are up to date. `status.conditions`: those before."""
    wanted = [
        _Wanted(
            type="Ready",
            status="True" if summary.state == "Ready" else "False",
            reason=summary.reason,
            message=summary.message,
        )
    ]
    if summary.state != "Ready":
        wanted.append(_Wanted(type=summary.state, status="True", reason=summary.reason, message=summary.message))
    if suspended:
        wanted.append(_Wanted(type="Suspended", status="True", reason="Suspended", message="spec.suspend is true"))
    wanted += _stage_conditions(status)
    if status.rollout is not None:
        promoted = status.rollout.promoted
        reason = "Serving" if promoted else status.rollout.phase
        wanted.append(_Wanted(type="Promoted", status="True" if promoted else "False", reason=reason))
    return [_stamped(each, before=status.conditions, generation=generation, now=now) for each in wanted]


def _stage_conditions(status: FineTuneJobStatus) -> Sequence[_Wanted]:
    wanted = []
    for name in STAGES:
        stage = status.stage(name)
        type_ = CONDITION_OF_STAGE[name]
        if stage is not None and stage.state == "Complete":
            verdict = status.evaluation.verdict if name == "Evaluate" and status.evaluation else None
            wanted.append(_Wanted(type=type_, status="True", reason=verdict or "Complete"))
        elif stage is not None and stage.state == "Failed":
            wanted.append(_Wanted(type=type_, status="False", reason="Failed"))
        else:
            begun = stage is not None and (stage.state != "Pending" or stage.attempt > 1)
            wanted.append(_Wanted(type=type_, status="False", reason="InProgress" if begun else "NotStarted"))
    return wanted


def _stamped(wanted: _Wanted, *, before: Sequence[Condition], generation: int, now: datetime) -> Condition:
    old = next((condition for condition in before if condition.type == wanted.type), None)
    flipped = old is None or old.status != wanted.status or old.last_transition_time is None
    return Condition(
        type=wanted.type,
        status=wanted.status,
        observed_generation=generation,
        last_transition_time=now if flipped or old is None else old.last_transition_time,
        reason=wanted.reason,
        message=wanted.message[:MAXIMUM_MESSAGE],
    )
