"""What is to be done about one endpoint: the answer of `decide`, and a draft of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.modelendpoint import ModelEndpointStatus
from finetune_operator.core.conditions import Summary
from finetune_operator.core.controller import ChildRef, Event
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.analysis.state import AnalysisState


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
    waits_for: tuple[str, ...] = ()
    """What only the choice or the statistics know of; the rest follows from the facts (next_steps.py)."""
    look_again: tuple[datetime, ...] = ()
    events: tuple[Event, ...] = ()
    analysis: AnalysisState | None = None
    """The state of the live statistics, where a part of a rollout is under analysis."""
