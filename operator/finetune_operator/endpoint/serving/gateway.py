"""The gateway of an endpoint: its Deployment, and what that may read.

Its Deployment is rendered when it is first needed and when spec.gateway changes, and kept in a ControllerRevision from
which it is applied word for word: a newer operator does not restart a gateway that works.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from finetune_api import GROUP
from finetune_api.modelendpoint import Gateway, GatewayLimits, ModelEndpoint
from finetune_api.observations import OBSERVATIONS_ROUTE
from finetune_operator.attempts.manifests import (
    CONTAINER_SECURITY,
    TOKEN_FOLDER,
    TOKEN_SECONDS,
    overlay_spec,
    pod_metadata,
    pod_security,
)
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import Door, Manifest
from finetune_operator.endpoint.names import (
    GATEWAY,
    GATEWAY_PORT,
    GATEWAY_STATUS_PORT,
    gateway_name,
    labels,
    metadata_of,
    routes_name,
    selector,
)
from finetune_operator.endpoint.serving.pod import BUSY_SECONDS, STOP_HOOK, spread

INPUTS_ANNOTATION = f"{GROUP}/rendered-from"
_RESTARTED_ANNOTATION = "kubectl.kubernetes.io/restartedAt"
_CA_FOLDER = "/etc/finetune-door"
_KEYS_FOLDER = "/etc/finetune-keys"
_GRACE_SECONDS = 60
_DRAIN_SECONDS = 45


def inputs_hash(endpoint: ModelEndpoint) -> str:
    """What the gateway's manifests were rendered from."""
    gateway = endpoint.spec.gateway or Gateway()
    return hashlib.sha256(json.dumps(gateway.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def recorded(deployment: Manifest) -> Manifest:
    """The ControllerRevision that holds the gateway's Deployment."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": deployment["metadata"],
        "revision": 1,
        "data": {"manifests": [deployment]},
    }


def without_restarts(template: dict[str, Any]) -> dict[str, Any]:
    """A pod's template as it was made: `kubectl rollout restart` writes a time there, and may do so again."""
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    kept = {name: text for name, text in annotations.items() if name != _RESTARTED_ANNOTATION}
    return (
        {**template, "metadata": {**(template.get("metadata") or {}), "annotations": kept}} if annotations else template
    )


def is_rendered_from(manifest: Manifest, *, endpoint: ModelEndpoint) -> bool:
    """Whether a gateway's Deployment, or its record, was made from spec.gateway as it is now."""
    return (manifest["metadata"].get("annotations") or {}).get(INPUTS_ANNOTATION) == inputs_hash(endpoint)


def gateway_manifests(*, endpoint: ModelEndpoint, config: OperatorConfig, door: Door | None) -> tuple[Manifest, ...]:
    """All of a gateway, in the order in which they must be made."""
    gateway = endpoint.spec.gateway or Gateway()
    name = gateway_name(endpoint.metadata.name)
    metadata = metadata_of(endpoint=endpoint, name=name, component=GATEWAY)
    selected = selector(endpoint=endpoint.metadata.name, component=GATEWAY)
    replicas = gateway.replicas or 2
    return (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata, "automountServiceAccountToken": False},
        *_rights(endpoint=endpoint, metadata=metadata),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"ca.crt": (door.ca_bundle if door else None) or ""},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**metadata, "name": endpoint.metadata.name},
            "spec": {"selector": selected, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        },
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata,
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": selected},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {**metadata, "annotations": {INPUTS_ANNOTATION: inputs_hash(endpoint)}},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": selected},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": _template(endpoint=endpoint, gateway=gateway, config=config, door=door, name=name),
            },
        },
    )


def _rights(*, endpoint: ModelEndpoint, metadata: dict[str, Any]) -> tuple[Manifest, Manifest]:
    """It may read its own routes, and nothing else."""
    rule = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [routes_name(endpoint.metadata.name)],
        "verbs": ["get", "list", "watch"],
    }
    api = "rbac.authorization.k8s.io"
    account = {"kind": "ServiceAccount", "name": metadata["name"], "namespace": metadata["namespace"]}
    return (
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": api, "kind": "Role", "name": metadata["name"]},
            "subjects": [account],
        },
    )


def _template(
    *, endpoint: ModelEndpoint, gateway: Gateway, config: OperatorConfig, door: Door | None, name: str
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - a mount point
    environment = _environment(endpoint=endpoint, gateway=gateway)
    if gateway.api_keys_secret_ref is not None:
        volumes.append({"name": "keys", "secret": {"secretName": gateway.api_keys_secret_ref.name}})
        mounts.append({"name": "keys", "mountPath": _KEYS_FOLDER, "readOnly": True})
        environment["KEYS_FOLDER"] = _KEYS_FOLDER
    if config.tracing_endpoint:
        environment["TRACING_ENDPOINT"] = config.tracing_endpoint
    if door is not None:
        environment["DOOR_URL"] = f"{door.url.rstrip('/')}{OBSERVATIONS_ROUTE}"
        token = {"path": "token", "audience": config.token_audience, "expirationSeconds": TOKEN_SECONDS}
        volumes.append({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}})
        mounts.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
        environment["DOOR_TOKEN_FILE"] = f"{TOKEN_FOLDER}/token"
        if door.ca_bundle is not None:
            volumes.append({"name": "door", "configMap": {"name": name}})
            mounts.append({"name": "door", "mountPath": _CA_FOLDER, "readOnly": True})
            environment["DOOR_CA_FILE"] = f"{_CA_FOLDER}/ca.crt"
    variables: list[dict[str, Any]] = [
        {"name": f"FINETUNE_GATEWAY_{key}", "value": value} for key, value in environment.items()
    ]
    for key, field in (("NAME", "metadata.name"), ("ADDRESS", "status.podIP")):
        variables.append({"name": f"FINETUNE_GATEWAY_{key}", "valueFrom": {"fieldRef": {"fieldPath": field}}})
    container: dict[str, Any] = {
        "name": GATEWAY,
        "image": config.gateway_image,
        "imagePullPolicy": config.image_pull_policy,
        "command": ["python", "-m", "finetune_gateway"],
        "env": variables,
        "ports": [
            {"name": "http", "containerPort": GATEWAY_PORT},
            {"name": "status", "containerPort": GATEWAY_STATUS_PORT},
        ],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "status"}, "periodSeconds": 2, "timeoutSeconds": 5},
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "status"},
            "periodSeconds": 10,
            "timeoutSeconds": BUSY_SECONDS,
            "failureThreshold": 6,
        },
        "resources": (gateway.resources or config.gateway_resources).to_dict(),
        "lifecycle": STOP_HOOK,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": mounts,
    }
    spec = {
        "serviceAccountName": name,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": pod_security(config),
        "topologySpreadConstraints": spread(selector(endpoint=endpoint.metadata.name, component=GATEWAY)),
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "metadata": pod_metadata(gateway.pod_template, labels=labels(endpoint=endpoint, component=GATEWAY)),
        "spec": {**spec, **overlay_spec(gateway.pod_template, config=config)},
    }


def _environment(*, endpoint: ModelEndpoint, gateway: Gateway) -> dict[str, str]:
    limits = gateway.limits or GatewayLimits()
    environment = {
        "ENDPOINT": endpoint.metadata.name,
        "NAMESPACE": endpoint.metadata.namespace,
        "PORT": str(GATEWAY_PORT),
        "STATUS_PORT": str(GATEWAY_STATUS_PORT),
        "DRAIN_SECONDS": str(_DRAIN_SECONDS),
    }
    given = {
        "BODY_BYTES": limits.body_bytes,
        "CONCURRENCY": limits.concurrency,
        "TIMEOUT_SECONDS": limits.timeout_seconds,
        "HEARTBEAT_SECONDS": gateway.heartbeat_seconds,
        "ALLOWED_ORIGINS": " ".join(gateway.allowed_origins) if gateway.allowed_origins else None,
    }
    return environment | {name: str(value) for name, value in given.items() if value is not None}
