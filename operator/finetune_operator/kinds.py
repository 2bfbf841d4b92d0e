"""The kinds that are reconciled, a row each. What a kind looks like to users is in `finetune_api.crd.RESOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.finetunejob import TERMINAL_PHASES
from finetune_operator.core.controller import Controller, KindMetrics
from finetune_operator.core.names import ENDPOINT_LABEL, JOB_LABEL, OWNED_LABEL
from finetune_operator.core.ports import Key, Kind, Manifest
from finetune_operator.core.status_writing import key_of
from finetune_operator.endpoint.controller import EndpointController
from finetune_operator.endpoint.metrics import EndpointMetrics
from finetune_operator.job.controller import JobController
from finetune_operator.job.metrics import JobMetrics


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """One kind of object, and what works on it."""

    kind: Kind
    label: str
    """By which its children, and what else concerns it, name it."""
    follows: tuple[Kind, ...] = ()
    """Kinds that are not its children: it is looked at when one changes that has its label."""
    terminal: frozenset[str] = frozenset()
    """Phases after which nothing is expected to happen."""
    metrics: Callable[..., KindMetrics]
    """Makes them in a `registry`."""
    controller: Callable[..., Controller]
    """Makes it of `around` (Surroundings) and its `metrics`."""


KINDS: tuple[Reconciled, ...] = (
    Reconciled(
        kind="FineTuneJob",
        label=JOB_LABEL,
        terminal=TERMINAL_PHASES,
        metrics=JobMetrics,
        controller=JobController,
    ),
    Reconciled(
        kind="ModelEndpoint",
        label=ENDPOINT_LABEL,
        follows=("ModelVersion",),
        metrics=EndpointMetrics,
        controller=EndpointController,
    ),
)
RECONCILED: tuple[Kind, ...] = tuple(row.kind for row in KINDS)
FOLLOWED: tuple[Kind, ...] = tuple(kind for row in KINDS for kind in row.follows)


def concerned(manifest: Manifest) -> Key | None:
    """The object that a changed one concerns: itself, or the one its labels name. None: nobody's child."""
    if manifest.get("kind") in RECONCILED:
        return key_of(manifest)
    kind, metadata = manifest.get("kind"), manifest["metadata"]
    labels = metadata.get("labels") or {}
    owner = next((row.kind for row in KINDS if kind in row.follows), labels.get(OWNED_LABEL))
    row = next((row for row in KINDS if row.kind == owner), None)
    name = labels.get(row.label) if row is not None else None
    return Key(kind=row.kind, namespace=metadata["namespace"], name=name) if row is not None and name else None


def has_ended(manifest: Manifest) -> bool:
    """Whether nothing is expected to happen to an object any more."""
    terminal = next((row.terminal for row in KINDS if row.kind == manifest.get("kind")), frozenset())
    return (manifest.get("status") or {}).get("phase") in terminal
