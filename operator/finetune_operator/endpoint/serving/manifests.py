"""What serves a version: ConfigMap with its orders, Deployment and Service.

Rendered once, when the version becomes a candidate, and kept in a ControllerRevision; from then on applied word for
word, by newer operators too. Only the number of replicas follows the endpoint's spec.
"""

from __future__ import annotations

import json
from typing import Any

from finetune_api.base import VersionReference
from finetune_api.modelendpoint import ModelEndpoint, Serving
from finetune_api.modelversion import ModelVersion
from finetune_api.run import MIDDLEWARE_FOLDER, RUN_FILE_VARIABLE, ServeOrder
from finetune_operator.attempts.claims import Claim, claim_mounts, claim_volumes, claims_behind, locations
from finetune_operator.attempts.evaluation import read_evaluation_plan
from finetune_operator.attempts.manifests import (
    CONTAINER_SECURITY,
    RUN_FOLDER,
    RUN_KEY,
    container_resources,
    overlay_spec,
    pod_metadata,
    pod_security,
)
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.names import short_hash
from finetune_operator.core.ports import Manifest
from finetune_operator.core.quantities import amount
from finetune_operator.endpoint.names import (
    SERVER,
    SERVER_PORT,
    VERSION_LABEL,
    VERSION_UID_LABEL,
    metadata_of,
    server_name,
)
from finetune_operator.endpoint.serving.pod import BUSY_SECONDS, STOP_HOOK, spread
from finetune_operator.endpoint.serving.servers import CONTAINER, FETCH
from finetune_operator.endpoint.serving.vllm import NotServableError, vllm_arguments

_CACHE_FOLDER = "/var/cache/finetune"
_VLLM = {
    "HOME": "/tmp",  # noqa: S108 - a mount point
    "XDG_CACHE_HOME": "/tmp/cache",  # noqa: S108
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONPATH": f"{_CACHE_FOLDER}/run/{MIDDLEWARE_FOLDER}",
}
_VLLM_ON_CPUS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "PASSIVE"}
"""Bound, the pods of a node would all compute on its first cores; threads that spin keep each other from running."""
_THREADS = {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}
_GRACE_SECONDS = 60
_START_SECONDS = 3600
"""A large model may take this long to load; the rollout's own deadline comes first."""


def render_revision(*, endpoint: ModelEndpoint, version: ModelVersion, config: OperatorConfig) -> Manifest:
    """The ControllerRevision that holds all manifests of a version's servers."""
    name = server_name(endpoint=endpoint.metadata.name, version_uid=version.metadata.uid)
    metadata = _metadata(endpoint=endpoint, version=version, name=name)
    manifests = [
        _orders(endpoint=endpoint, version=version, config=config, metadata=metadata),
        _deployment(endpoint=endpoint, version=version, config=config, metadata=metadata),
        _service(metadata),
    ]
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata,
        "revision": 1,
        "data": {"manifests": manifests},
    }


def rendered(revision: Manifest) -> tuple[Manifest, ...]:
    """The manifests that a ControllerRevision holds, in the order in which they must be made."""
    return tuple(revision["data"]["manifests"])


def scaled(manifests: tuple[Manifest, ...], *, replicas: int) -> tuple[Manifest, ...]:
    """The manifests with another number of replicas."""
    return tuple(
        {**each, "spec": {**each["spec"], "replicas": replicas}} if each["kind"] == "Deployment" else each
        for each in manifests
    )


def _metadata(*, endpoint: ModelEndpoint, version: ModelVersion, name: str) -> dict[str, Any]:
    metadata = metadata_of(endpoint=endpoint, name=name, component=SERVER)
    own = {VERSION_LABEL: _label(version.metadata.name), VERSION_UID_LABEL: version.metadata.uid}
    return {**metadata, "labels": {**metadata["labels"], **own}}


def _orders(
    *, endpoint: ModelEndpoint, version: ModelVersion, config: OperatorConfig, metadata: dict[str, Any]
) -> Manifest:
    spec = version.spec
    runtime = endpoint.spec.serving.runtime
    order = ServeOrder(
        endpoint=endpoint.metadata.name,
        version=VersionReference(name=version.metadata.name, uid=version.metadata.uid),
        runtime="FastAPI" if runtime == "FastAPI" else "Transformers",
        locations=locations(
            run=f"file://{_CACHE_FOLDER}/run",
            cache=f"file://{_CACHE_FOLDER}/artifacts",
            claims=_claims(version),
            config=config,
        ),
        artifact=spec.artifact,
        base=spec.base,
        task=spec.task,
        labels=spec.labels,
        context_tokens=spec.limit,
        precision=spec.evaluation.precision or "Auto",
        port=SERVER_PORT,
    )
    data = {RUN_KEY: json.dumps(order.to_dict(), indent=1, sort_keys=True)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": data}


def _service(metadata: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": {VERSION_UID_LABEL: metadata["labels"][VERSION_UID_LABEL]},
            "ports": [{"name": "http", "port": SERVER_PORT, "targetPort": "http"}],
        },
    }


def _deployment(
    *, endpoint: ModelEndpoint, version: ModelVersion, config: OperatorConfig, metadata: dict[str, Any]
) -> Manifest:
    serving = endpoint.spec.serving
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": pod_security(config),
        "topologySpreadConstraints": spread({VERSION_UID_LABEL: version.metadata.uid}),
        **_containers(endpoint=endpoint, version=version, config=config),
        "volumes": _volumes(version, name=metadata["name"], shared_memory=_shared_memory(serving, config)),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": serving.replicas or 1,
            "selector": {"matchLabels": {VERSION_UID_LABEL: version.metadata.uid}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": _START_SECONDS,
            "template": {
                "metadata": pod_metadata(serving.pod_template, labels=metadata["labels"]),
                "spec": {**spec, **overlay_spec(serving.pod_template, config=config)},
            },
        },
    }


def _containers(*, endpoint: ModelEndpoint, version: ModelVersion, config: OperatorConfig) -> dict[str, Any]:
    """Our own runtimes fetch and verify the artifact themselves; for vLLM an init container does that first."""
    serving = endpoint.spec.serving
    ours: dict[str, Any] = {
        "image": config.trainer_image,
        "imagePullPolicy": config.image_pull_policy,
        "env": [{"name": RUN_FILE_VARIABLE, "value": f"{RUN_FOLDER}/{RUN_KEY}"}],
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "File",
        "volumeMounts": _mounts(version, config),
    }
    if secrets := secrets_of(endpoint=endpoint, version=version):
        # Those of the job may be gone since: the key to a dataset, which no server needs.
        asked: dict[str, Any] = {} if endpoint.spec.serving.secret_ref is not None else {"optional": True}
        ours["envFrom"] = [{"secretRef": {"name": secret, **asked}} for secret in secrets]
    server: dict[str, Any] = {
        "name": CONTAINER,
        "ports": [{"name": "http", "containerPort": SERVER_PORT}],
        "resources": container_resources(
            serving.resources or config.server_resources, gpus=serving.gpus or 0, gpu_resource=serving.gpu_resource
        ),
        "lifecycle": STOP_HOOK,
    }
    if endpoint.spec.serving.runtime != "VLLM":
        return {"containers": [{**ours, **server, "args": ["serve"], **_probes(live="/healthz", ready="/readyz")}]}
    memory = server["resources"].get("limits", {}).get("memory", server["resources"].get("requests", {}).get("memory"))
    size = amount(memory)
    shared = {"name": "shm", "mountPath": "/dev/shm"}  # noqa: S108 - a mount point
    vllm = {
        **server,
        "image": vllm_image(endpoint, config),
        "imagePullPolicy": config.image_pull_policy,
        "command": vllm_arguments(
            version=version.spec,
            model_name=endpoint.metadata.name,
            folder=f"{_CACHE_FOLDER}/run",
            gpus=serving.gpus or 0,
            memory_bytes=None if size is None else int(size),
            port=SERVER_PORT,
        ),
        "env": [*_variables(_VLLM), *([] if serving.gpus else [*_variables(_VLLM_ON_CPUS), _THREADS])],
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [*_mounts(version, config), shared],
        **_probes(live="/health", ready="/health"),
    }
    return {"initContainers": [{**ours, "name": FETCH, "args": ["fetch"]}], "containers": [vllm]}


def vllm_image(endpoint: ModelEndpoint, config: OperatorConfig) -> str:
    """The image of its servers where their runtime is VLLM; empty: the operator has none."""
    return config.vllm_image if endpoint.spec.serving.gpus else config.vllm_cpu_image


def _variables(values: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def unservable(*, endpoint: ModelEndpoint, version: ModelVersion, config: OperatorConfig) -> str | None:
    """Why the endpoint's runtime cannot serve a version, or None."""
    if endpoint.spec.serving.runtime != "VLLM":
        return None
    try:
        _containers(endpoint=endpoint, version=version, config=config)
    except NotServableError as error:
        return str(error)
    return None


def secrets_of(*, endpoint: ModelEndpoint, version: ModelVersion) -> list[str]:
    """Names of the Secrets with which the version's model is read: the endpoint's own, else those of its job."""
    own = endpoint.spec.serving.secret_ref
    plan = read_evaluation_plan(version.spec.evaluation.plan)
    return [own.name] if own is not None else plan.secrets if plan is not None else []


def _probes(*, live: str, ready: str) -> dict[str, Any]:
    return {
        "startupProbe": _probe(ready, seconds=2, failures=_START_SECONDS // 2),
        "readinessProbe": _probe(ready, seconds=2, failures=2),
        "livenessProbe": {**_probe(live, seconds=10, failures=6), "timeoutSeconds": BUSY_SECONDS},
    }


def _probe(path: str, *, seconds: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _claims(version: ModelVersion) -> list[Claim]:
    """The claims behind the pvc:// URIs that serving reads."""
    return claims_behind(read=(version.spec.artifact.uri, version.spec.base.loadable_uri))


def _shared_memory(serving: Serving, config: OperatorConfig) -> str | None:
    """sizeLimit of /dev/shm, where vLLM and its workers, one a GPU, exchange; None: no such volume."""
    return (config.shm_size_limit or f"{1 + (serving.gpus or 0)}Gi") if serving.runtime == "VLLM" else None


def _volumes(version: ModelVersion, *, name: str, shared_memory: str | None) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "run", "configMap": {"name": name}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", "emptyDir": {}},
    ]
    if shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}})
    return [*volumes, *claim_volumes(_claims(version))]


def _mounts(version: ModelVersion, config: OperatorConfig) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "run", "mountPath": RUN_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount point
        {"name": "cache", "mountPath": _CACHE_FOLDER},
    ]
    return [*mounts, *claim_mounts(_claims(version), config=config)]


def _label(text: str) -> str:
    """A label value holds at most 63 characters."""
    return text if len(text) <= 63 else f"{text[:54]}-{short_hash(text)}"
