"""The ports of the functional core: all that reconciling needs from the outside.

Three implementations pass the same conformance tests: Kubernetes (`kube/`), a folder with processes (`local/`), and
one in memory that simulations use (tests/simulation). Objects are plain dictionaries in Kubernetes' own form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from finetune_api.crd import ResourceKind
from finetune_api.finetunejob import TrainerStatus
from finetune_api.observations import Observations

Manifest = dict[str, Any]
Kind = Literal[
    ResourceKind,
    "Job",
    "Pod",
    "ConfigMap",
    "Secret",
    "Service",
    "Deployment",
    "ReplicaSet",
    "ControllerRevision",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "Event",
    "Workload",
]
"""`Workload` is Kueue's: read to say why a run waits, absent where Kueue is not installed."""
FIELD_MANAGER = "finetune-operator"


@dataclass(frozen=True, kw_only=True, order=True)
class Key:
    """What is reconciled: one object of ours."""

    kind: Kind
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


class NotAllowedError(UnavailableError):
    """The cluster refuses for now: a quota, a right, a namespace that goes away. `str()` is the apiserver's message."""


class Cluster(Protocol):
    """Reads are live, never from a cache. Every method may raise UnavailableError."""

    async def get(self, *, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none."""
        ...

    async def list(
        self, *, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """Objects that carry all these labels, of one namespace or (None) of all that the operator watches.

        Sorted by namespace and name.
        """
        ...

    async def events_about(self, *, namespace: str, uid: str) -> tuple[Manifest, ...]:
        """Events about the object with this UID, and no others: a namespace may hold thousands."""
        ...

    async def create(self, *, manifest: Manifest) -> Manifest:
        """Create-only. Raises AlreadyExistsError, InvalidError."""
        ...

    async def apply(self, *, manifest: Manifest) -> Manifest:
        """Server-side apply with FIELD_MANAGER, forced, to the object with `metadata.uid`; create-only where it is not
        given. Same content again changes nothing but, the first time, who manages what.

        Raises ConflictError where the object is gone or another one, AlreadyExistsError, InvalidError.
        """
        ...

    async def delete(self, *, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete with a UID precondition, dependants in the background.

        Gone already: no error. Raises ConflictError for another UID.
        """
        ...

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        """Write `status` as a whole, guarded by metadata.resourceVersion.

        Raises ConflictError, NotFoundError, InvalidError.
        """
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


Clock = Callable[[], datetime]
"""The time now, in UTC and aware of it."""


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where training pods report, as they must know it."""

    url: str
    """Scheme and authority, without a path: `https://finetune-door.finetune-system.svc`."""
    ca_bundle: str | None = None
    """PEM certificates that the pods must trust; None: plain HTTP on loopback, which needs no token either."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The newest report of a job's training pods, and when it came in by our own clock."""

    status: TrainerStatus
    received: datetime


class ProgressSource(Protocol):
    """What training pods reported to this process. It may forget at any time: reports are cumulative."""

    @property
    def listening_since(self) -> datetime:
        """Since when this process can be reported to. Silence before that says nothing about a run."""
        ...

    def latest(self, *, uid: str) -> Progress | None:
        """The newest report about the FineTuneJob with this UID, or None."""
        ...

    def forget(self, *, uid: str) -> None:
        """Drop what was reported so far: it came from an attempt that is over."""
        ...


@dataclass(frozen=True, kw_only=True)
class Report:
    """The newest report of one start of a gateway, and when it came in by our own clock."""

    observations: Observations
    received: datetime


class ObservationSource(Protocol):
    """What gateways reported to this process. It may forget at any time: reports are cumulative."""

    def reports(self, *, namespace: str, endpoint: str) -> tuple[Report, ...]:
        """The newest report of each start of each gateway of an endpoint."""
        ...

    def counts_matter(self, *, namespace: str, endpoint: str, matter: bool) -> None:
        """Whether counts alone are worth a look: while something is under analysis."""
        ...

    def forget(self, *, namespace: str, endpoint: str) -> None:
        """Drop what was reported: the endpoint is gone."""
        ...
