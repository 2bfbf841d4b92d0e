"""The pods of all stages: restricted Pod Security, nothing mounted without need, users' overlays from an allowlist.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

from typing import Any

from finetune_api import GROUP
from finetune_api.finetunejob import FineTuneJob, StageName
from finetune_api.progress import CA_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, progress_path
from finetune_api.run import MASTER_ADDRESS_VARIABLE, MASTER_PORT_VARIABLE, RUN_FILE_VARIABLE
from finetune_operator.config import OperatorConfig
from finetune_operator.job.names import KUEUE_PREFIX, child_labels, child_name
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.pods import CONTAINER
from finetune_operator.job.stages import GPU_RESOURCE, StageSize, mount_path
from finetune_operator.ports import Door

USER_ID = 65532
"""The user `finetune` of the trainer image, and the group that owns what claims hold."""
RUN_FOLDER = "/etc/finetune"
RUN_KEY = "run.json"
CA_KEY = "ca.crt"
TOKEN_FOLDER = "/var/run/secrets/finetune.dev"  # noqa: S105 - a folder
TOKEN_SECONDS = 3600
GRACE_VARIABLE = "FINETUNE_TERMINATION_GRACE_SECONDS"
_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_OUR_LABELS = (f"{GROUP}/", "batch.kubernetes.io/", "kueue.x-k8s.io/", "job-name", "controller-uid")


def pod_template(
    *,
    job: FineTuneJob,
    plan: ResolvedPlan,
    stage: StageName,
    attempt: int,
    size: StageSize,
    config: OperatorConfig,
    door: Door | None,
) -> dict[str, Any]:
    """spec.template of the attempt's Job."""
    name = child_name(job=job.metadata.name, stage=stage, attempt=attempt)
    reports = door if stage == "Train" else None
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": config.termination_grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            _container(job=job, plan=plan, name=name, stage=stage, size=size, config=config, reports=reports)
        ],
        "volumes": _volumes(plan=plan, name=name, size=size, config=config, reports=reports),
        "tolerations": _tolerations(plan=plan, config=config),
    }
    if size.pods > 1:
        spec["subdomain"] = name
    return {
        "metadata": _metadata(job=job, plan=plan, labels=child_labels(job=job, stage=stage, attempt=attempt)),
        "spec": spec | _overlay(plan),
    }


def _container(
    *,
    job: FineTuneJob,
    plan: ResolvedPlan,
    name: str,
    stage: StageName,
    size: StageSize,
    config: OperatorConfig,
    reports: Door | None,
) -> dict[str, Any]:
    environment = {
        RUN_FILE_VARIABLE: f"{RUN_FOLDER}/{RUN_KEY}",
        GRACE_VARIABLE: str(config.termination_grace_seconds),
    }
    if stage == "Train":
        environment[MASTER_ADDRESS_VARIABLE] = f"{name}-0.{name}" if size.pods > 1 else "127.0.0.1"
        environment[MASTER_PORT_VARIABLE] = str(config.master_port)
    if reports is not None:
        environment |= _reporting(job=job, door=reports)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": plan.trainer_image,
        "imagePullPolicy": config.image_pull_policy,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": _resources(size),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": _mounts(plan=plan, size=size, config=config, reports=reports),
    }
    if plan.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in plan.secrets]
    return container


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


def _volumes(
    *, plan: ResolvedPlan, name: str, size: StageSize, config: OperatorConfig, reports: Door | None
) -> list[dict[str, Any]]:
    tmp = {"sizeLimit": config.tmp_size_limit} if config.tmp_size_limit else {}
    volumes: list[dict[str, Any]] = [
        {"name": "run", "configMap": {"name": name}},
        {"name": "tmp", "emptyDir": tmp},
    ]
    if size.gpus > 1:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    if reports is not None and reports.ca_bundle is not None:
        token = {"path": "token", "audience": config.token_audience, "expirationSeconds": TOKEN_SECONDS}
        volumes.append({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    for number, claim in enumerate(plan.claims):
        source: dict[str, Any] = {"claimName": claim.name}
        if not claim.writable:
            source["readOnly"] = True
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
    return volumes


def _mounts(
    *, plan: ResolvedPlan, size: StageSize, config: OperatorConfig, reports: Door | None
) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "run", "mountPath": RUN_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount point
    ]
    if size.gpus > 1:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - a mount point
    if reports is not None and reports.ca_bundle is not None:
        mounts.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
    for number, claim in enumerate(plan.claims):
        mount: dict[str, Any] = {
            "name": f"claim-{number}",
            "mountPath": mount_path(claim=claim.name, config=config),
        }
        if not claim.writable:
            mount["readOnly"] = True
        mounts.append(mount)
    return mounts


def _metadata(*, job: FineTuneJob, plan: ResolvedPlan, labels: dict[str, str]) -> dict[str, Any]:
    """The user's labels and annotations, except where they would hide the pod from us; Kueue's topology wishes."""
    overlay = plan.pod_template.metadata if plan.pod_template else None
    theirs = (overlay.labels if overlay else None) or {}
    annotations = {key: text for key, text in job.metadata.annotations.items() if key.startswith(KUEUE_PREFIX)}
    annotations |= (overlay.annotations if overlay else None) or {}
    kept = {key: value for key, value in theirs.items() if not key.startswith(_OUR_LABELS)}
    metadata: dict[str, Any] = {"labels": {**kept, **labels}}
    if annotations:
        metadata["annotations"] = annotations
    return metadata


def _tolerations(*, plan: ResolvedPlan, config: OperatorConfig) -> list[dict[str, Any]]:
    """The user's, and short ones for nodes that are lost: Kubernetes' default keeps pods there for five minutes."""
    spec = plan.pod_template.spec if plan.pod_template else None
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


def _overlay(plan: ResolvedPlan) -> dict[str, Any]:
    """The allowlisted fields of the user's podTemplate, tolerations and metadata aside."""
    spec = plan.pod_template.spec if plan.pod_template else None
    if spec is None:
        return {}
    return {key: value for key, value in spec.to_dict().items() if key != "tolerations"}
