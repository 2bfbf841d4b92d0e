"""What is to be done about one endpoint: the answer of `decide`, and a draft of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.modelendpoint import ModelEndpointStatus
from finetune_operator.controller import ChildRef, Event
from finetune_operator.endpoint.analysis_state import AnalysisState
from finetune_operator.job.conditions import Summary
from finetune_operator.ports import Manifest


@dataclass(frozen=True, kw_only=True)
class EndpointDecision:
    """Carried out in this order: delete, create, apply, write the status, tell."""

    delete: tuple[ChildRef, ...] = ()
    create: tuple[Manifest, ...] = ()
    apply: tuple[Manifest, ...] = ()
    """In this order."""
    status: ModelEndpointStatus | None = None
    """The whole new status; None: it stays as it is."""
    requeue_seconds: float | None = None
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The facts after one step of the machine. What follows from them is done at the next look."""

    status: ModelEndpointStatus
    """Served versions, step, plan and outcomes are up to date; phase, message and conditions are not yet."""
    summary: Summary
    create: tuple[Manifest, ...] = ()
    """What compares the next version with what is stable."""
    look_again: tuple[datetime, ...] = ()
    events: tuple[Event, ...] = ()
    analysis: AnalysisState | None = None
    """The state of the live statistics, where a part of a rollout is under analysis."""
