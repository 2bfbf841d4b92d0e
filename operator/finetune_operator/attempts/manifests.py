"""The manifests of an attempt: its orders, the names of a gang, and the Job with its pods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_api import GROUP
from finetune_api.base import StrictModel
from finetune_api.results import PERMANENT_EXIT_CODES, ExitCode
from finetune_api.run import RUN_FILE_VARIABLE
from finetune_api.shared_fields import GPU_RESOURCE, PodOverlay, Quantity, Resources
from finetune_operator.attempts.claims import Claim, claim_mounts, claim_volumes
from finetune_operator.attempts.pods import CONTAINER
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.names import KUEUE_QUEUE_LABEL
from finetune_operator.core.ports import Door, Manifest


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many pods, and what each gets."""

    pods: int
    gpus: int
    """GPUs of each pod."""
    resources: Resources
    gpu_resource: str = GPU_RESOURCE
    devices: Mapping[str, Quantity] = field(default_factory=dict)
    """Extended resources beside the GPUs."""
    processes: int = 1
    """Of each pod, that train together."""


def container_resources(
    resources: Resources, *, gpus: int, gpu_resource: str | None = None, devices: Mapping[str, Quantity] | None = None
) -> dict[str, Any]:
    """A container's `resources`, GPUs and other devices included: as limits, from which requests follow."""
    found = resources.to_dict()
    extended = {**(devices or {}), **({gpu_resource or GPU_RESOURCE: str(gpus)} if gpus else {})}
    return {**found, "limits": {**found.get("limits", {}), **extended}} if extended else found


_WEIGHT = 100


def forbidden(nodes: Sequence[str]) -> list[str]:
    """Nodes that had their second chance."""
    return sorted({node for node in nodes if nodes.count(node) > 1})


def avoiding(affinity: dict[str, Any] | None, *, nodes: Sequence[str]) -> dict[str, Any] | None:
    """The user's affinity, and ours against the nodes of the last ends."""
    if not nodes:
        return affinity
    never = forbidden(nodes)
    rather_not = sorted(set(nodes) - set(never))
    affinity = dict(affinity or {})
    of_nodes = dict(affinity.get("nodeAffinity") or {})
    if never:
        required = of_nodes.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
        # One of the terms must match as a whole, so ours belongs into each.
        terms = [_without(term, never) for term in required.get("nodeSelectorTerms") or [{}]]
        of_nodes["requiredDuringSchedulingIgnoredDuringExecution"] = {**required, "nodeSelectorTerms": terms}
    if rather_not:
        wishes = of_nodes.get("preferredDuringSchedulingIgnoredDuringExecution") or []
        ours = {"weight": _WEIGHT, "preference": _without({}, rather_not)}
        of_nodes["preferredDuringSchedulingIgnoredDuringExecution"] = [*wishes, ours]
    return {**affinity, "nodeAffinity": of_nodes}


def _without(term: dict[str, Any], nodes: Sequence[str]) -> dict[str, Any]:
    # Of fields, only the name can be asked for, and only one at a time.
    ours = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    return {**term, "matchFields": [*(term.get("matchFields") or ()), *ours]}


RUN_FOLDER = "/etc/finetune"
RUN_KEY = "run.json"
CA_KEY = "ca.crt"
TOKEN_FOLDER = "/var/run/secrets/finetune.dev"  # noqa: S105 - a folder
TOKEN_SECONDS = 3600
LIFE_FILE = "/tmp/finetune-alive"  # noqa: S108 - in the container's own volume
GRACE_VARIABLE = "FINETUNE_TERMINATION_GRACE_SECONDS"
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_OUR_LABELS = (f"{GROUP}/", "batch.kubernetes.io/", "kueue.x-k8s.io/", "job-name", "controller-uid")


@dataclass(frozen=True, kw_only=True)
class PodInputs:
    """What a container of the trainer image is given."""

    metadata: dict[str, Any]
    """Of the Job, and of the ConfigMap with its orders."""
    queue_labels: Mapping[str, str]
    """Kueue's, for the Job."""
    annotations: Mapping[str, str]
    """Kueue's topology wishes."""
    image: str
    size: Size
    claims: Sequence[Claim]
    secrets: Sequence[str]
    overlay: PodOverlay | None
    environment: Mapping[str, str] = field(default_factory=dict)
    reports: Door | None = None
    """The door at which it reports its progress."""
    avoid: Sequence[str] = ()
    """Nodes where the last attempts ended."""
    life_seconds: int | None = None
    """It is ready while it did something in that time, by LIFE_FILE."""


def trainer_pod(inputs: PodInputs, *, config: OperatorConfig) -> dict[str, Any]:
    """spec.template of a Job whose container does one stage."""
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": config.termination_grace_seconds,
        "securityContext": pod_security(config),
        "containers": [_container(inputs, config=config)],
        "volumes": _volumes(inputs, config=config),
        "tolerations": _tolerations(inputs.overlay, config=config),
    }
    if inputs.size.pods > 1:
        spec["subdomain"] = inputs.metadata["name"]
    spec |= {**overlay_spec(inputs.overlay, config=config), "tolerations": spec["tolerations"]}
    if (affinity := avoiding(spec.get("affinity"), nodes=inputs.avoid)) is not None:
        spec["affinity"] = affinity
    metadata = pod_metadata(
        inputs.overlay, labels=inputs.metadata["labels"], annotations=inputs.annotations, ours=_OUR_LABELS
    )
    return {"metadata": metadata, "spec": spec}


def pod_security(config: OperatorConfig) -> dict[str, Any]:
    """Who the processes of a pod are; what is not set, the cluster sets."""
    profile = {"type": config.seccomp_profile} if config.seccomp_profile is not None else None
    context = {
        "runAsNonRoot": True,
        "runAsUser": config.run_as_user,
        "runAsGroup": config.run_as_group,
        "fsGroup": config.fs_group,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": profile,
    }
    return {key: value for key, value in context.items() if value is not None}


def _container(inputs: PodInputs, *, config: OperatorConfig) -> dict[str, Any]:
    environment = {
        RUN_FILE_VARIABLE: f"{RUN_FOLDER}/{RUN_KEY}",
        GRACE_VARIABLE: str(config.termination_grace_seconds),
        **inputs.environment,
    }
    size = inputs.size
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": inputs.image,
        "imagePullPolicy": config.image_pull_policy,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": container_resources(
            size.resources, gpus=size.gpus, gpu_resource=size.gpu_resource, devices=size.devices
        ),
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "File",
        "volumeMounts": _mounts(inputs, config=config),
    }
    if inputs.life_seconds is not None:
        container["readinessProbe"] = _sign_of_life(inputs.life_seconds)
    if inputs.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in inputs.secrets]
    return container


def _sign_of_life(seconds: int) -> dict[str, Any]:
    """Tells us through kubelet that training goes on, where no report gets through. No Service asks for readiness."""
    script = 'test $(($(date +%s) - $(stat -c %Y "$0"))) -lt "$1"'
    return {
        "exec": {"command": ["/bin/sh", "-c", script, LIFE_FILE, str(seconds)]},
        "periodSeconds": 10,
        "timeoutSeconds": 10,
        "failureThreshold": 6,
    }


def _volumes(inputs: PodInputs, *, config: OperatorConfig) -> list[dict[str, Any]]:
    tmp = {"sizeLimit": config.tmp_size_limit} if config.tmp_size_limit else {}
    volumes: list[dict[str, Any]] = [
        {"name": "run", "configMap": {"name": inputs.metadata["name"]}},
        {"name": "tmp", "emptyDir": tmp},
    ]
    if inputs.size.processes > 1:
        shared = config.shm_size_limit or f"{inputs.size.processes}Gi"
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}})
    if inputs.reports is not None and inputs.reports.ca_bundle is not None:
        token = {"path": "token", "audience": config.token_audience, "expirationSeconds": TOKEN_SECONDS}
        volumes.append({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    return [*volumes, *claim_volumes(inputs.claims)]


def _mounts(inputs: PodInputs, *, config: OperatorConfig) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "run", "mountPath": RUN_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount point
    ]
    if inputs.size.processes > 1:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - a mount point
    if inputs.reports is not None and inputs.reports.ca_bundle is not None:
        mounts.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
    return [*mounts, *claim_mounts(inputs.claims, config=config)]


def pod_metadata(
    overlay: PodOverlay | None,
    *,
    labels: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
    ours: tuple[str, ...] = (f"{GROUP}/",),
) -> dict[str, Any]:
    """Metadata of a pod: ours, and the user's except where labels, by how they begin, would hide the pod from us."""
    theirs = overlay.metadata if overlay else None
    kept = {key: text for key, text in ((theirs.labels if theirs else None) or {}).items() if not key.startswith(ours)}
    metadata: dict[str, Any] = {"labels": {**kept, **labels}}
    if both := {**(annotations or {}), **((theirs.annotations if theirs else None) or {})}:
        metadata["annotations"] = both
    return metadata


def _tolerations(overlay: PodOverlay | None, *, config: OperatorConfig) -> list[dict[str, Any]]:
    """The user's, and short ones for nodes that are lost: Kubernetes' default keeps pods there for five minutes."""
    theirs = overlay_spec(overlay, config=config).get("tolerations") or []
    covered = {toleration.get("key") for toleration in theirs}
    ours = [
        {
            "key": key,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": config.unreachable_seconds,
        }
        for key in _NODE_TAINTS
        if key not in covered
    ]
    return [*theirs, *ours]


def overlay_spec(overlay: PodOverlay | None, *, config: OperatorConfig) -> dict[str, Any]:
    """The allowlisted fields of the user's podTemplate.spec, and the Secrets for images of all pods."""
    spec = overlay.spec.to_dict() if overlay is not None and overlay.spec is not None else {}
    secrets = spec.get("imagePullSecrets", [])
    secrets += [{"name": name} for name in config.image_pull_secrets if {"name": name} not in secrets]
    return {**spec, **({"imagePullSecrets": secrets} if secrets else {})}


FAILURE_RULES: tuple[dict[str, Any], ...] = (
    {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": CONTAINER,
            "operator": "In",
            "values": [int(ExitCode.STOPPED_AFTER_CHECKPOINT)],
        },
    },
    {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": CONTAINER,
            "operator": "In",
            "values": sorted(int(code) for code in PERMANENT_EXIT_CODES),
        },
    },
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
)
"""Each fails the Job, which would fail anyway: one attempt is one gang. What the rules add is memory: the Job's
condition names the rule that applied, also when the pod is gone (evidence reads it)."""


def attempt_manifests(inputs: PodInputs, *, order: StrictModel, config: OperatorConfig) -> tuple[Manifest, ...]:
    """All children of an attempt, in the order in which they must be made."""
    gang = (_service(inputs.metadata),) if inputs.size.pods > 1 else ()
    return _orders(inputs, order=order), *gang, _indexed_job(inputs, config=config)


def _orders(inputs: PodInputs, *, order: StrictModel) -> Manifest:
    """The orders, and whom to trust at the door: pods cannot read ConfigMaps of the operator's namespace."""
    data = {RUN_KEY: json.dumps(order.to_dict(), indent=1, sort_keys=True)}
    if inputs.reports is not None and inputs.reports.ca_bundle is not None:
        data[CA_KEY] = inputs.reports.ca_bundle
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": inputs.metadata, "immutable": True, "data": data}


def _service(metadata: dict[str, Any]) -> Manifest:
    """Names for the pods of a gang. They must resolve before the pods are ready: they become ready by meeting."""
    labels = metadata["labels"]
    selector = {key: value for key, value in labels.items() if key.endswith(("/job-uid", "/stage", "/attempt"))}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector},
    }


def _indexed_job(inputs: PodInputs, *, config: OperatorConfig) -> Manifest:
    """One Indexed Job: the pod's index is its node rank, and the gang has one try."""
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": inputs.size.pods,
        "parallelism": inputs.size.pods,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": list(FAILURE_RULES)},
        "template": trainer_pod(inputs, config=config),
    }
    if KUEUE_QUEUE_LABEL in inputs.queue_labels:
        spec["suspend"] = True  # until Kueue admits it
    metadata = {**inputs.metadata, "labels": {**inputs.queue_labels, **inputs.metadata["labels"]}}
    if inputs.annotations:
        metadata["annotations"] = dict(inputs.annotations)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
