"""All that a decision about one endpoint rests on, gathered once. Nothing here is fetched, everything is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.modelendpoint import ModelEndpoint, ServedVersion
from finetune_api.modelversion import ModelVersion
from finetune_api.routes import Routes
from finetune_operator.attempts.observed import Attempt
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import ChildRef
from finetune_operator.core.ports import Door, Manifest
from finetune_operator.core.reasons import Reason
from finetune_operator.endpoint.analysis.reports import Gateways
from finetune_operator.endpoint.analysis.state import AnalysisState


@dataclass(frozen=True, kw_only=True)
class Server:
    """What exists of one version's servers: the Deployment and its pods."""

    version_uid: str
    refs: tuple[ChildRef, ...]
    """All that has to go when the version is served no more."""
    ready: bool = False
    """As many replicas as wanted have answered a request."""
    ready_replicas: int = 0
    replicas: int = 0
    """Pods that exist, ready or not."""
    scheduled_since: datetime | None = None
    """When its first pod got a node; None: none has."""
    unschedulable: str | None = None
    """Why a pod has no node."""
    failure: str | None = None
    """Why it will never be ready, in the server's own words: it has ended for a reason that does not go away."""
    trouble: str | None = None
    """Why it is not ready so far."""


@dataclass(frozen=True, kw_only=True)
class ObservedComparison:
    """What exists of the comparison of one version with one baseline."""

    attempts: Mapping[int, Attempt]
    """By number; never empty."""
    refs: tuple[ChildRef, ...]
    """All that has to go when it is not needed any more; ConfigMaps first, since they are found by their Job."""


@dataclass(frozen=True, kw_only=True)
class ObservedEndpoint:
    """One endpoint, its children and the world around them at one moment."""

    endpoint: ModelEndpoint
    now: datetime
    config: OperatorConfig
    door: Door | None = None
    versions: tuple[ModelVersion, ...] = ()
    """ModelVersions of the namespace that name this endpoint, the pinned one and those under way. One that is being
    deleted is gone."""
    candidate_deleted: bool = False
    """The candidate's ModelVersion is gone; one that only cannot be read is not."""
    servers: Mapping[str, Server] = field(default_factory=dict)
    """By version UID."""
    server_urls: Mapping[str, str] = field(default_factory=dict)
    """Base URL of the servers of each version that the status names, by UID."""
    gateways: Gateways
    gateway: Server | None = None
    """The gateways, as facts of a Deployment's pods; None: there are none."""
    routes: Routes | None = None
    routes_problem: str | None = None
    """The routes ConfigMap is there and cannot be read: nothing may be changed then."""
    analysis: AnalysisState | None = None
    comparisons: Mapping[str, ObservedComparison] = field(default_factory=dict)
    """By the key of version and baseline (comparison.comparison_key)."""
    children: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)
    """By kind and name: what exists of the children that the endpoint may want, and is its own."""
    foreign: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)
    """By kind and name: objects of others under such names. Nothing may be done to them, or with them."""

    def version(self, uid: str) -> ModelVersion | None:
        """The ModelVersion with this UID."""
        return next((version for version in self.versions if version.metadata.uid == uid), None)

    def why_unserved(self, stable: ServedVersion) -> tuple[str, str] | None:
        """Reason and words for why clients of the stable version get no answer now; None: they do."""
        server = self.servers.get(stable.uid)
        if self.gateway is None or self.gateway.ready_replicas == 0:
            return Reason.GATEWAY_NOT_READY, f"no gateway is ready{_why(self.gateway)}"
        if server is None or server.ready_replicas == 0:
            return Reason.SERVER_NOT_READY, f"no server of {stable.name} is ready{_why(server)}"
        return None

    def unready(self, version: ServedVersion) -> tuple[str, ...]:
        """What is to be waited for before more depends on a version that was ready; empty: nothing."""
        server = self.servers.get(version.uid)
        return (
            () if server is not None and server.ready else (f"the servers of {version.name} to be ready{_why(server)}",)
        )

    def served_by(self, stable: ServedVersion) -> str:
        """Who answers clients, in words; and that nobody does where that is so."""
        why = self.why_unserved(stable)
        return f"{stable.name} serves all requests" if why is None else f"no request is answered now: {why[1]}"

    def child(self, wanted: Manifest) -> Manifest | None:
        """What exists of a child."""
        return self.children.get((wanted["kind"], wanted["metadata"]["name"]))

    @property
    def epoch(self) -> int:
        """The epoch of the routes that exist; 0: none do."""
        return self.routes.epoch if self.routes is not None else 0

    @property
    def overtaken(self) -> bool:
        """Whether a gateway follows newer routes than those that exist: somebody deleted them, or put back old ones.
        To gateways those say nothing."""
        return self.gateways.furthest > self.epoch

    @property
    def next_epoch(self) -> int:
        """Of routes that are newer to every gateway."""
        return max(self.epoch, self.gateways.furthest) + 1

    @property
    def is_followed(self) -> bool:
        """Whether every gateway follows the routes that exist."""
        return not self.overtaken and self.gateways.all_acknowledge(self.epoch)


def _why(server: Server | None) -> str:
    words = (server.unschedulable or server.failure or server.trouble) if server is not None else None
    return f": {words}" if words else ""
