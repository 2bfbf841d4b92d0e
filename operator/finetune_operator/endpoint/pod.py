"""What the pods of servers and gateways have in common: restricted Pod Security, and users' overlays."""

from __future__ import annotations

from typing import Any

from finetune_api import GROUP
from finetune_api.shared_fields import PodOverlay

CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


STOP_HOOK: dict[str, Any] = {"preStop": {"sleep": {"seconds": 5}}}
"""Before SIGTERM: the time that nodes take to hear that a Service does not lead here any more (Kubernetes 1.30)."""


def spread(matched: dict[str, str]) -> list[dict[str, Any]]:
    """Pods of a kind on different nodes and in different zones, where there are any: a lost one takes few along."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": matched},
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]


def merged_metadata(overlay: PodOverlay | None, *, labels: dict[str, str]) -> dict[str, Any]:
    """The user's labels and annotations, except where they would hide the pod from us."""
    theirs = overlay.metadata if overlay else None
    kept = {key: value for key, value in ((theirs.labels if theirs else None) or {}).items() if not _ours(key)}
    metadata: dict[str, Any] = {"labels": {**kept, **labels}}
    if theirs is not None and theirs.annotations:
        metadata["annotations"] = dict(theirs.annotations)
    return metadata


def overlay_of(overlay: PodOverlay | None) -> dict[str, Any]:
    """The allowlisted fields of the user's podTemplate.spec."""
    return overlay.spec.to_dict() if overlay is not None and overlay.spec is not None else {}


def _ours(label: str) -> bool:
    return label.startswith(f"{GROUP}/")
