"""What a kind of object brings to the reconcile loop: how to look at it, and what to say when nothing can be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from finetune_operator.core.conditions import Summary
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import Clock, Cluster, Door, Key, Kind, Manifest, ObservationSource, ProgressSource


@dataclass(frozen=True, kw_only=True)
class ChildRef:
    """A child as it must be named to delete just it."""

    kind: Kind
    namespace: str
    name: str
    uid: str


def ref_of(manifest: Manifest) -> ChildRef:
    """How to name a child."""
    metadata = manifest["metadata"]
    return ChildRef(
        kind=manifest["kind"], namespace=metadata["namespace"], name=metadata["name"], uid=metadata.get("uid", "")
    )


@dataclass(frozen=True, kw_only=True)
class Event:
    """A Kubernetes Event, published after the status write that it tells of."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def _nothing() -> None:
    """Nothing more to do."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at an object came to. Carried out in this order: delete, create, apply, write the status, tell."""

    delete: tuple[ChildRef, ...] = ()
    create: tuple[Manifest, ...] = ()
    """Create-only, the last one after all others; one that is there already and is the object's own counts as made."""
    apply: tuple[Manifest, ...] = ()
    """One after the other in this order: server-side apply to the object with the UID that it says; create-only where
    it says none."""
    status: dict[str, Any] | None = None
    """The whole new status; None: it stays as it is."""
    events: tuple[Event, ...] = ()
    requeue_seconds: float | None = None
    """When to look again; 0: at once. None: an event will tell."""
    before_create: Callable[[], None] = field(default=_nothing)
    """Called when the old children are told to go and the new ones are not made yet."""
    afterwards: Callable[[], None] = field(default=_nothing)
    """Called when all is done: counters and gauges."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What controllers see of the outside, and how."""

    cluster: Cluster
    config: OperatorConfig
    clock: Clock
    door: Callable[[], Door | None]
    progress: ProgressSource
    observations: ObservationSource
    server_url: Callable[[str, str], str] | None = None
    """Namespace and Service of a version's servers -> base URL, as the gateways reach it; None: as the settings say."""


class KindMetrics(Protocol):
    """Gauges and counters of one kind."""

    def forget(self, *, key: Key) -> None:
        """The object is gone."""
        ...

    def forget_all(self) -> None:
        """This process does not lead any more: what objects do is another's to show."""
        ...


class Controller(Protocol):
    """One kind of object. Keeps nothing between looks but metrics."""

    async def look(self, *, manifest: Manifest) -> Look:
        """Observe and decide. Raises UnavailableError, or whatever is wrong with our own code."""
        ...

    def hold(self, *, manifest: Manifest, summary: Summary) -> Look:
        """The conditions that say why nothing can be done now."""
        ...

    def gone(self, *, key: Key) -> None:
        """The object is not there any more."""
        ...

    def owns(self, *, manifest: Manifest, child: Manifest) -> bool:
        """Whether an object that was found under a child's name was made for this one."""
        ...
