"""All that a decision about one endpoint rests on, gathered once. Nothing here is fetched, everything is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.modelendpoint import ModelEndpoint, ServedVersion
from finetune_api.modelversion import ModelVersion
from finetune_api.routes import Routes
from finetune_operator.config import OperatorConfig
from finetune_operator.controller import ChildRef
from finetune_operator.endpoint.analysis_state import AnalysisState
from finetune_operator.endpoint.reports import Gateways
from finetune_operator.job.observed import Attempt
from finetune_operator.ports import Door, Manifest


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
    """ModelVersions of the namespace that name this endpoint, the pinned one and the stable one."""
    servers: Mapping[str, Server] = field(default_factory=dict)
    """By version UID."""
    server_urls: Mapping[str, str] = field(default_factory=dict)
    """Base URL of the servers of each version that the status names, by UID."""
    gateways: Gateways
    gateway_ready: int = 0
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
        if self.gateway_ready == 0:
            return "GatewayNotReady", "no gateway is ready"
        if server is None or server.ready_replicas == 0:
            return "ServerNotReady", f"no server of {stable.name} is ready"
        return None

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
