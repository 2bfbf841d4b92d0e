"""The ports of the functional core: all that reconciling needs from the outside.

Three implementations pass the same conformance tests: in memory (tests), Kubernetes (`kube/`), and a folder with
processes (`local/`). Objects are plain dictionaries in Kubernetes' own form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Manifest = dict[str, Any]
Kind = Literal[
    "FineTuneJob",
    "ModelVersion",
    "ModelEndpoint",
    "Job",
    "Pod",
    "ConfigMap",
    "Secret",
    "Service",
    "Deployment",
    "ControllerRevision",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "ServiceAccount",
    "Event",
]
FIELD_MANAGER = "finetune-operator"


@dataclass(frozen=True, kw_only=True, order=True)
class Key:
    """What is reconciled: one object of ours."""

    kind: Literal["FineTuneJob", "ModelVersion", "ModelEndpoint"]
    namespace: str
    name: str


class AlreadyExistsError(Exception):
    """create() found an object of that name."""


class ConflictError(Exception):
    """The object changed since it was read, or a UID precondition did not hold."""


class NotFoundError(Exception):
    """The object to write is gone."""


class InvalidError(Exception):
    """The object was refused: schema, rule or policy. `str()` is the apiserver's message."""


class UnavailableError(Exception):
    """The cluster did not answer. Try again later; nothing is known about the write."""


class Cluster(Protocol):
    """Reads are live, never from a cache. Every method may raise UnavailableError."""

    async def get(self, *, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none."""
        ...

    async def list(self, *, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """Objects of a namespace (None: all that the operator watches) that carry all these labels, sorted by namespace and name."""
        ...

    async def create(self, *, manifest: Manifest) -> Manifest:
        """Create-only. Raises AlreadyExistsError, InvalidError."""
        ...

    async def apply(self, *, manifest: Manifest) -> Manifest:
        """Server-side apply with FIELD_MANAGER, forced. Same content again changes nothing. Raises InvalidError."""
        ...

    async def delete(self, *, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete with a UID precondition, dependants in the background. Gone already: no error. Raises ConflictError for another UID."""
        ...

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        """Write `status` as a whole, guarded by metadata.resourceVersion. Raises ConflictError, NotFoundError, InvalidError."""
        ...

    async def record_event(
        self, *, regarding: Manifest, type: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Publish a Kubernetes Event. Best effort: failing loses the event, nothing else."""
        ...


Enqueue = Callable[[Key], None]


class WatchSource(Protocol):
    """Turns changes of our objects and their children into keys. Level-triggered: a key says 'look', never 'what'."""

    async def run(self, *, enqueue: Enqueue) -> None:
        """Watch until cancelled, with a periodic relist."""
        ...
