"""Names and labels of an endpoint's children: the same for the same endpoint and version, always."""

from __future__ import annotations

import re
from typing import Any

from finetune_api import GROUP
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.core.names import ENDPOINT_LABEL, OWNED_LABEL, owner_reference, short_hash
from finetune_operator.core.ports import Manifest

COMPONENT_LABEL = f"{GROUP}/component"
ENDPOINT_UID_LABEL = f"{GROUP}/endpoint-uid"
COMPARISON_LABEL = f"{GROUP}/comparison"
VERSION_LABEL = f"{GROUP}/version"
VERSION_UID_LABEL = f"{GROUP}/version-uid"
GATEWAY = "gateway"
SERVER = "server"
COMPARISON = "comparison"
SERVER_PORT = 8000
GATEWAY_PORT = 8080
GATEWAY_STATUS_PORT = 8081
_LONGEST_BASE = 40
"""With the suffixes that follow, and those of pods, a name stays within 63 characters."""


def base_name(endpoint: str) -> str:
    """The endpoint's name as a DNS label that leaves room for suffixes; hashed where it had to be changed."""
    label = re.sub(r"[^a-z0-9-]", "-", endpoint)
    if not label[0].isalpha():
        label = f"e-{label}"
    if label == endpoint and len(label) <= _LONGEST_BASE:
        return label
    return f"{label[: _LONGEST_BASE - 9].rstrip('-')}-{short_hash(endpoint)}"


def server_name(*, endpoint: str, version_uid: str) -> str:
    """Of a served version's Deployment, Service, ConfigMap and ControllerRevision."""
    return f"{base_name(endpoint)}-v-{short_hash(version_uid)}"


def servers_name(endpoint: str) -> str:
    """Of the NetworkPolicy of all its servers."""
    return f"{base_name(endpoint)}-servers"


def gateway_name(endpoint: str) -> str:
    """Of the gateway's Deployment, ServiceAccount, Role and PodDisruptionBudget."""
    return f"{base_name(endpoint)}-gateway"


def routes_name(endpoint: str) -> str:
    """Of the ConfigMap with the routes."""
    return f"{endpoint}-routes"


def analysis_name(endpoint: str) -> str:
    """Of the ConfigMap with the state of the live statistics."""
    return f"{endpoint}-analysis"


def comparison_name(*, endpoint: str, key: str, attempt: int) -> str:
    """The Job of a comparison's attempt, and its ConfigMap."""
    return f"{base_name(endpoint)}-compare-{key}-{attempt}"


def labels(*, endpoint: ModelEndpoint, component: str) -> dict[str, str]:
    """What finds the children of an endpoint again."""
    return {
        OWNED_LABEL: endpoint.kind,
        ENDPOINT_LABEL: endpoint.metadata.name,
        ENDPOINT_UID_LABEL: endpoint.metadata.uid,
        COMPONENT_LABEL: component,
    }


def selector(*, endpoint: str, component: str) -> dict[str, str]:
    """What selects children by the endpoint's name alone: an object that was restored has another UID, and what serves
    goes on to be found."""
    return {OWNED_LABEL: "ModelEndpoint", ENDPOINT_LABEL: endpoint, COMPONENT_LABEL: component}


def server_selector(*, endpoint: str, version_uid: str) -> str:
    """What selects the pods of a version's servers, as text; another endpoint of the namespace may serve it as well."""
    chosen = selector(endpoint=endpoint, component=SERVER) | {VERSION_UID_LABEL: version_uid}
    return ",".join(f"{label}={value}" for label, value in chosen.items())


def owned(manifest: Manifest, *, endpoint: ModelEndpoint) -> Manifest:
    """The manifest of a server's child as one of this very object: it may have been rendered for the one before a
    restore. A Service leads to this endpoint's own servers: those of another one with the same version let only its
    gateways in."""
    metadata = manifest["metadata"]
    ours = {ENDPOINT_UID_LABEL: endpoint.metadata.uid}
    if manifest["kind"] == "Service":
        spec, servers = manifest["spec"], selector(endpoint=endpoint.metadata.name, component=SERVER)
        manifest = {**manifest, "spec": {**spec, "selector": {**spec["selector"], **servers}}}
    return {
        **manifest,
        "metadata": {
            **metadata,
            "labels": {**metadata["labels"], **ours},
            "ownerReferences": [owner_reference(endpoint)],
        },
    }


def metadata_of(*, endpoint: ModelEndpoint, name: str, component: str) -> dict[str, Any]:
    """Metadata of a child."""
    return {
        "name": name,
        "namespace": endpoint.metadata.namespace,
        "labels": labels(endpoint=endpoint, component=component),
        "ownerReferences": [owner_reference(endpoint)],
    }
