"""Labels, owner and hashes that name children, whoever's they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

from finetune_api import API_VERSION, GROUP
from finetune_api.base import ObjectMeta

OWNED_LABEL = f"{GROUP}/owned-by"
JOB_LABEL = f"{GROUP}/job"
JOB_UID_LABEL = f"{GROUP}/job-uid"
STAGE_LABEL = f"{GROUP}/stage"
ATTEMPT_LABEL = f"{GROUP}/attempt"
ENDPOINT_LABEL = f"{GROUP}/endpoint"
KUEUE_PREFIX = "kueue.x-k8s.io/"
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


class Owner(Protocol):
    """An object of ours."""

    @property
    def kind(self) -> str:
        """Its kind."""
        ...

    @property
    def metadata(self) -> ObjectMeta:
        """Its name and UID, among others."""
        ...


def owner_reference(owner: Owner) -> dict[str, Any]:
    """The controlling owner of all its children."""
    return {
        "apiVersion": API_VERSION,
        "kind": owner.kind,
        "name": owner.metadata.name,
        "uid": owner.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def of_kueue(texts: dict[str, str]) -> dict[str, str]:
    """The labels or annotations that are for Kueue: they pass to the children."""
    return {key: text for key, text in texts.items() if key.startswith(KUEUE_PREFIX)}


def for_one_pod(annotations: Mapping[str, str]) -> dict[str, str]:
    """Without Kueue's wishes for a gang: flavours for CPUs may have no topology, and admit nobody who asks for one."""
    return {key: text for key, text in annotations.items() if not key.startswith(f"{KUEUE_PREFIX}podset-")}


def short_hash(text: str) -> str:
    """Eight hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
