"""The pods of all stages: restricted Pod Security, nothing mounted without need, users' overlays from an allowlist.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_api import GROUP
from finetune_api.finetunejob import FineTuneJob, StageName
from finetune_api.progress import CA_VARIABLE, LIFE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, progress_path
from finetune_api.run import MASTER_ADDRESS_VARIABLE, MASTER_PORT_VARIABLE, RUN_FILE_VARIABLE
from finetune_api.shared_fields import PodOverlay
from finetune_operator.config import OperatorConfig
from finetune_operator.job.names import child_labels, child_name, of_kueue
from finetune_operator.job.node_affinity import avoiding
from finetune_operator.job.plan import Claim, ResolvedPlan
from finetune_operator.job.pods import CONTAINER
from finetune_operator.job.stages import GPU_RESOURCE, StageSize, mount_path
from finetune_operator.ports import Door

RUN_FOLDER = "/etc/finetune"
RUN_KEY = "run.json"
CA_KEY = "ca.crt"
TOKEN_FOLDER = "/var/run/secrets/finetune.dev"  # noqa: S105 - a folder
TOKEN_SECONDS = 3600
LIFE_FILE = "/tmp/finetune-alive"  # noqa: S108 - in the container's own volume
GRACE_VARIABLE = "FINETUNE_TERMINATION_GRACE_SECONDS"
_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_OUR_LABELS = (f"{GROUP}/", "batch.kubernetes.io/", "kueue.x-k8s.io/", "job-name", "controller-uid")


@dataclass(frozen=True, kw_only=True)
class PodInputs:
    """What a container of the trainer image is given."""

    name: str
    """Of the Job, and of the ConfigMap with its orders."""
    labels: dict[str, str]
    annotations: dict[str, str]
    """Kueue's topology wishes."""
    image: str
    size: StageSize
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


def pod_template(
    *,
    job: FineTuneJob,
    plan: ResolvedPlan,
    stage: StageName,
    attempt: int,
    size: StageSize,
    config: OperatorConfig,
    door: Door | None,
    avoid: Sequence[str],
) -> dict[str, Any]:
    """spec.template of the attempt's Job."""
    name = child_name(job=job.metadata.name, stage=stage, attempt=attempt)
    reports = door if stage == "Train" else None
    environment: dict[str, str] = {}
    if stage == "Train":
        environment[MASTER_ADDRESS_VARIABLE] = f"{name}-0.{name}" if size.pods > 1 else "127.0.0.1"
        environment[MASTER_PORT_VARIABLE] = str(config.master_port)
    if reports is not None:
        environment |= _reporting(job=job, door=reports)
        if reports.ca_bundle is not None:
            environment[LIFE_VARIABLE] = LIFE_FILE
    inputs = PodInputs(
        name=name,
        labels=child_labels(job=job, stage=stage, attempt=attempt),
        annotations=of_kueue(job.metadata.annotations),
        image=plan.trainer_image,
        size=size,
        claims=plan.claims,
        secrets=plan.secrets,
        overlay=plan.overlay(stage),
        environment=environment,
        reports=reports,
        avoid=avoid,
        life_seconds=plan.hang_seconds if LIFE_VARIABLE in environment else None,
    )
    return trainer_pod(inputs, config=config)


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
        spec["subdomain"] = inputs.name
    spec |= _overlay(inputs.overlay)
    if (affinity := avoiding(spec.get("affinity"), nodes=inputs.avoid)) is not None:
        spec["affinity"] = affinity
    return {"metadata": _metadata(inputs), "spec": spec}


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
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": inputs.image,
        "imagePullPolicy": config.image_pull_policy,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": _resources(inputs.size),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
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


def _reporting(*, job: FineTuneJob, door: Door) -> dict[str, str]:
    """How to report progress: Kubeflow Trainer's variables (KEP-2779)."""
    path = progress_path(namespace=job.metadata.namespace, job=job.metadata.name)
    variables = {URL_VARIABLE: f"{door.url.rstrip('/')}{path}"}
    if door.ca_bundle is not None:
        variables[TOKEN_VARIABLE] = f"{TOKEN_FOLDER}/token"
        variables[CA_VARIABLE] = f"{RUN_FOLDER}/{CA_KEY}"
    return variables


def _resources(size: StageSize) -> dict[str, Any]:
    resources = size.resources.to_dict()
    if size.gpus:
        # Extended resources must be limits; requests follow from them.
        resources["limits"] = {**resources.get("limits", {}), GPU_RESOURCE: str(size.gpus)}
    return resources


def _volumes(inputs: PodInputs, *, config: OperatorConfig) -> list[dict[str, Any]]:
    tmp = {"sizeLimit": config.tmp_size_limit} if config.tmp_size_limit else {}
    volumes: list[dict[str, Any]] = [
        {"name": "run", "configMap": {"name": inputs.name}},
        {"name": "tmp", "emptyDir": tmp},
    ]
    if inputs.size.gpus > 1:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    if inputs.reports is not None and inputs.reports.ca_bundle is not None:
        token = {"path": "token", "audience": config.token_audience, "expirationSeconds": TOKEN_SECONDS}
        volumes.append({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    for number, claim in enumerate(inputs.claims):
        source: dict[str, Any] = {"claimName": claim.name}
        if not claim.writable:
            source["readOnly"] = True
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
    return volumes


def _mounts(inputs: PodInputs, *, config: OperatorConfig) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "run", "mountPath": RUN_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount point
    ]
    if inputs.size.gpus > 1:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - a mount point
    if inputs.reports is not None and inputs.reports.ca_bundle is not None:
        mounts.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
    for number, claim in enumerate(inputs.claims):
        mount: dict[str, Any] = {
            "name": f"claim-{number}",
            "mountPath": mount_path(claim=claim.name, config=config),
        }
        if not claim.writable:
            mount["readOnly"] = True
        mounts.append(mount)
    return mounts


def _metadata(inputs: PodInputs) -> dict[str, Any]:
    """The user's labels and annotations, except where they would hide the pod from us; Kueue's topology wishes."""
    overlay = inputs.overlay.metadata if inputs.overlay else None
    theirs = (overlay.labels if overlay else None) or {}
    annotations = inputs.annotations | ((overlay.annotations if overlay else None) or {})
    kept = {key: value for key, value in theirs.items() if not key.startswith(_OUR_LABELS)}
    metadata: dict[str, Any] = {"labels": {**kept, **inputs.labels}}
    if annotations:
        metadata["annotations"] = annotations
    return metadata


def _tolerations(overlay: PodOverlay | None, *, config: OperatorConfig) -> list[dict[str, Any]]:
    """The user's, and short ones for nodes that are lost: Kubernetes' default keeps pods there for five minutes."""
    spec = overlay.spec if overlay else None
    theirs = [toleration.to_dict() for toleration in (spec.tolerations if spec else None) or ()]
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


def _overlay(overlay: PodOverlay | None) -> dict[str, Any]:
    """The allowlisted fields of the user's podTemplate, tolerations and metadata aside."""
    spec = overlay.spec if overlay else None
    if spec is None:
        return {}
    return {key: value for key, value in spec.to_dict().items() if key != "tolerations"}
