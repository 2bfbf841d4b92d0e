"""Names, labels and owner of children: the same for the same job, stage and attempt, always."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from finetune_api import API_VERSION, GROUP
from finetune_api.finetunejob import FineTuneJob, StageName

OWNED_LABEL = f"{GROUP}/owned-by"
JOB_LABEL = f"{GROUP}/job"
JOB_UID_LABEL = f"{GROUP}/job-uid"
STAGE_LABEL = f"{GROUP}/stage"
ATTEMPT_LABEL = f"{GROUP}/attempt"
ENDPOINT_LABEL = f"{GROUP}/endpoint"
KUEUE_PREFIX = "kueue.x-k8s.io/"
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

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
        OWNED_LABEL: "FineTuneJob",
        JOB_LABEL: job.metadata.name,
        JOB_UID_LABEL: job.metadata.uid,
        STAGE_LABEL: stage,
        ATTEMPT_LABEL: str(attempt),
    }


def version_name(*, job: FineTuneJob, taken: bool) -> str:
    """The ModelVersion's name: the job's, with a hash of the UID where another run's version already has that name."""
    name = job.metadata.name
    return f"{name}-{short_hash(job.metadata.uid)}" if taken else name


def owner_reference(job: FineTuneJob) -> dict[str, Any]:
    """The controlling owner of all children."""
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def of_kueue(texts: dict[str, str]) -> dict[str, str]:
    """The labels or annotations that are for Kueue: they pass to the children."""
    return {key: text for key, text in texts.items() if key.startswith(KUEUE_PREFIX)}


def short_hash(text: str) -> str:
    """Eight hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
