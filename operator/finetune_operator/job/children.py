"""The children of an attempt: the ConfigMap with its orders, the Service of a gang, and the Job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.finetunejob import FineTuneJob, StageName
from finetune_api.results import PERMANENT_EXIT_CODES, ExitCode
from finetune_operator.config import OperatorConfig
from finetune_operator.job.names import (
    KUEUE_QUEUE_LABEL,
    child_labels,
    child_name,
    of_kueue,
    owner_reference,
)
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.pod_template import CA_KEY, RUN_KEY, pod_template
from finetune_operator.job.pods import CONTAINER
from finetune_operator.job.stages import Results, order_of, size_of
from finetune_operator.ports import Door, Manifest

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


def children_of(
    *,
    job: FineTuneJob,
    plan: ResolvedPlan,
    stage: StageName,
    attempt: int,
    results: Results,
    config: OperatorConfig,
    door: Door | None,
    avoid: Sequence[str] = (),
) -> tuple[Manifest, ...]:
    """All children of an attempt, in the order in which they must be made. `avoid`: nodes where the last ones ended."""
    size = size_of(stage=stage, plan=plan)
    base = _metadata(job=job, stage=stage, attempt=attempt)
    order = order_of(stage=stage, attempt=attempt, job=job, plan=plan, results=results, config=config)
    config_map = orders(metadata=base, order=order.to_dict(), door=door if stage == "Train" else None)
    template = pod_template(
        job=job, plan=plan, stage=stage, attempt=attempt, size=size, config=config, door=door, avoid=avoid
    )
    batch_job = indexed_job(
        metadata=base,
        template=template,
        pods=size.pods,
        labels=of_kueue(job.metadata.labels),
        annotations=of_kueue(job.metadata.annotations),
    )
    if size.pods > 1:
        return config_map, _service(base), batch_job
    return config_map, batch_job


def _metadata(*, job: FineTuneJob, stage: StageName, attempt: int) -> dict[str, Any]:
    return {
        "name": child_name(job=job.metadata.name, stage=stage, attempt=attempt),
        "namespace": job.metadata.namespace,
        "labels": child_labels(job=job, stage=stage, attempt=attempt),
        "ownerReferences": [owner_reference(job)],
    }


def orders(*, metadata: dict[str, Any], order: dict[str, Any], door: Door | None) -> Manifest:
    """The orders, and whom to trust at the door: pods cannot read ConfigMaps of the operator's namespace."""
    data = {RUN_KEY: json.dumps(order, indent=1, sort_keys=True)}
    if door is not None and door.ca_bundle is not None:
        data[CA_KEY] = door.ca_bundle
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": data}


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


def indexed_job(
    *,
    metadata: dict[str, Any],
    template: dict[str, Any],
    pods: int,
    labels: Mapping[str, str],
    annotations: dict[str, str],
) -> Manifest:
    """One Indexed Job: the pod's index is its node rank, and the gang has one try. Labels and annotations: Kueue's."""
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": list(FAILURE_RULES)},
        "template": template,
    }
    if KUEUE_QUEUE_LABEL in labels:
        spec["suspend"] = True  # until Kueue admits it
    metadata = {**metadata, "labels": {**labels, **metadata["labels"]}}
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
