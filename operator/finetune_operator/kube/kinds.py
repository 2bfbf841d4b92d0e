"""Where each kind of the ports lives in the Kubernetes API."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api import API_VERSION
from finetune_api.crd import RESOURCES
from finetune_operator.core.ports import Kind, Manifest


@dataclass(frozen=True, kw_only=True)
class Place:
    """A namespaced resource of the API."""

    api_version: str
    plural: str

    @property
    def root(self) -> str:
        """`/api/v1` for the core group, `/apis/GROUP/VERSION` for all others."""
        return f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"

    def collection(self, *, namespace: str | None) -> str:
        """The path of the collection: of one namespace, or (None) of all."""
        return f"{self.root}/namespaces/{namespace}/{self.plural}" if namespace else f"{self.root}/{self.plural}"

    def item(self, *, namespace: str, name: str) -> str:
        """The path of one object."""
        return f"{self.collection(namespace=namespace)}/{name}"


PLACES: dict[Kind, Place] = {
    **{each.kind: Place(api_version=API_VERSION, plural=each.plural) for each in RESOURCES},
    "Job": Place(api_version="batch/v1", plural="jobs"),
    "Pod": Place(api_version="v1", plural="pods"),
    "ConfigMap": Place(api_version="v1", plural="configmaps"),
    "Secret": Place(api_version="v1", plural="secrets"),
    "Service": Place(api_version="v1", plural="services"),
    "Deployment": Place(api_version="apps/v1", plural="deployments"),
    "ReplicaSet": Place(api_version="apps/v1", plural="replicasets"),
    "ControllerRevision": Place(api_version="apps/v1", plural="controllerrevisions"),
    "PersistentVolumeClaim": Place(api_version="v1", plural="persistentvolumeclaims"),
    "PodDisruptionBudget": Place(api_version="policy/v1", plural="poddisruptionbudgets"),
    "NetworkPolicy": Place(api_version="networking.k8s.io/v1", plural="networkpolicies"),
    "ServiceAccount": Place(api_version="v1", plural="serviceaccounts"),
    "Role": Place(api_version="rbac.authorization.k8s.io/v1", plural="roles"),
    "RoleBinding": Place(api_version="rbac.authorization.k8s.io/v1", plural="rolebindings"),
    "Event": Place(api_version="events.k8s.io/v1", plural="events"),
    "Workload": Place(api_version="kueue.x-k8s.io/v1beta2", plural="workloads"),
}
_KINDS: dict[tuple[str, str], Kind] = {(place.api_version, kind): kind for kind, place in PLACES.items()}


def kind_of(*, manifest: Manifest) -> Kind:
    """The kind of a manifest. Raises ValueError for one that the operator does not handle."""
    identity = (str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))
    if identity not in _KINDS:
        raise ValueError(f"{identity[1]} of {identity[0]} is not a kind that the operator handles")
    return _KINDS[identity]


def place_of(*, manifest: Manifest) -> Place:
    """Where a manifest lives. Raises ValueError for a kind that the operator does not handle."""
    return PLACES[kind_of(manifest=manifest)]
