"""The children of an attempt of a job's stage."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune_api.finetunejob import FineTuneJob, StageName
from finetune_api.progress import CA_VARIABLE, HANG_VARIABLE, LIFE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, progress_path
from finetune_api.run import INTERFACE_VARIABLES, MASTER_ADDRESS_VARIABLE, MASTER_PORT_VARIABLE, Identity
from finetune_operator.attempts.claims import locations
from finetune_operator.attempts.manifests import (
    CA_KEY,
    LIFE_FILE,
    RUN_FOLDER,
    TOKEN_FOLDER,
    PodInputs,
    attempt_manifests,
)
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.names import (
    ATTEMPT_LABEL,
    JOB_LABEL,
    JOB_UID_LABEL,
    OWNED_LABEL,
    STAGE_LABEL,
    for_one_pod,
    of_kueue,
    owner_reference,
    short_hash,
)
from finetune_operator.core.ports import Door, Manifest
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.stages import Ordering, Results, stage_of

LONGEST_CHILD_NAME = 57
"""Pods of an Indexed Job have the host name `<name>-<index>`: at most 63 characters, of which an index takes 6."""


def child_name(*, job: str, stage: StageName, attempt: int) -> str:
    """`<job>-<stage>-<attempt>`: a DNS label (Service and host names must be one), hashed where it would not be."""
    suffix = f"-{stage.lower()}-{attempt}"
    label = re.sub(r"[^a-z0-9-]", "-", job)
    if not label[0].isalpha():
        label = f"r-{label}"
    if label == job and len(label) + len(suffix) <= LONGEST_CHILD_NAME:
        return label + suffix
    tail = f"-{short_hash(job)}{suffix}"
    return label[: LONGEST_CHILD_NAME - len(tail)].rstrip("-") + tail


def child_labels(*, job: FineTuneJob, stage: StageName, attempt: int) -> dict[str, str]:
    """What finds the children of a job again."""
    return {
        OWNED_LABEL: job.kind,
        JOB_LABEL: job.metadata.name,
        JOB_UID_LABEL: job.metadata.uid,
        STAGE_LABEL: stage,
        ATTEMPT_LABEL: str(attempt),
    }


def version_name(*, job: FineTuneJob, taken: bool) -> str:
    """The ModelVersion's name: the job's, with a hash of the UID where another run's version already has that name."""
    name = job.metadata.name
    return f"{name}-{short_hash(job.metadata.uid)}" if taken else name


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
    record, name = stage_of(stage), child_name(job=job.metadata.name, stage=stage, attempt=attempt)
    size, annotations = record.size(plan), of_kueue(job.metadata.annotations)
    reports = door if record.trains else None
    environment: dict[str, str] = {}
    if record.trains:
        environment[MASTER_ADDRESS_VARIABLE] = f"{name}-0.{name}" if size.pods > 1 else "127.0.0.1"
        environment[MASTER_PORT_VARIABLE] = str(config.master_port)
        environment |= _interface(plan.network.interface if plan.network else None)
    if reports is not None:
        environment |= _reporting(job=job, door=reports)
        if LIFE_VARIABLE in environment:
            environment[HANG_VARIABLE] = str(plan.hang_seconds)
    inputs = PodInputs(
        metadata={
            "name": name,
            "namespace": job.metadata.namespace,
            "labels": child_labels(job=job, stage=stage, attempt=attempt),
            "ownerReferences": [owner_reference(job)],
        },
        queue_labels=of_kueue(job.metadata.labels),
        annotations=annotations if record.trains else for_one_pod(annotations),
        image=plan.trainer_image,
        size=size,
        claims=plan.claims,
        secrets=plan.secrets,
        overlay=record.overlay(plan),
        environment=environment,
        reports=reports,
        avoid=avoid,
        life_seconds=plan.hang_seconds if LIFE_VARIABLE in environment else None,
    )
    ordering = Ordering(
        job=job,
        plan=plan,
        results=results,
        identity=Identity(
            namespace=job.metadata.namespace, job=job.metadata.name, uid=job.metadata.uid, attempt=attempt
        ),
        locations=locations(run=plan.run, cache=plan.cache, claims=plan.claims, config=config),
    )
    return attempt_manifests(inputs, order=record.order(ordering), config=config)


def _interface(name: str | None) -> dict[str, str]:
    """NCCL takes a name for the beginning of one, but for `=`."""
    nccl, gloo = INTERFACE_VARIABLES
    return {} if name is None else {nccl: f"={name}", gloo: name}


def _reporting(*, job: FineTuneJob, door: Door) -> dict[str, str]:
    """How to report progress: Kubeflow Trainer's variables (KEP-2779)."""
    path = progress_path(namespace=job.metadata.namespace, job=job.metadata.name)
    variables = {URL_VARIABLE: f"{door.url.rstrip('/')}{path}"}
    if door.ca_bundle is not None:
        variables[TOKEN_VARIABLE] = f"{TOKEN_FOLDER}/token"
        variables[CA_VARIABLE] = f"{RUN_FOLDER}/{CA_KEY}"
        variables[LIFE_VARIABLE] = LIFE_FILE
    return variables
