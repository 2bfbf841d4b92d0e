"""Whose an object is. Names and labels prove nothing: anybody may give them to anything. What is written over, believed
or deleted is ours by the UID of its controlling owner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finetune_api import API_VERSION
from finetune_operator.core.names import ENDPOINT_LABEL, OWNED_LABEL
from finetune_operator.core.ports import Manifest


def controller_of(manifest: Manifest) -> dict[str, Any]:
    """The reference to the controlling owner; empty where there is none."""
    owners: list[dict[str, Any]] = manifest["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})


def is_owned(manifest: Manifest, *, uid: str) -> bool:
    """Whether the object with this UID controls it."""
    return bool(controller_of(manifest).get("uid") == uid)


def pods_of(deployment: Manifest, *, pods: Iterable[Manifest], replica_sets: Iterable[Manifest]) -> list[Manifest]:
    """The pods that a Deployment controls, by way of its ReplicaSets; itself where it has none, as in local mode."""
    uid = deployment["metadata"]["uid"]
    owners = {each["metadata"]["uid"] for each in replica_sets if is_owned(each, uid=uid)} or {uid}
    return [pod for pod in pods if controller_of(pod).get("uid") in owners]


def is_left(manifest: Manifest, *, endpoint: str) -> bool:
    """Whether it is a child of an earlier object of this name, as a restore leaves them: made for the endpoint by its
    labels, and owned by nobody who lives. Two endpoints of one name do not live at once, so a reference to another UID
    is to one that is gone. Whoever made such an object could write its kind, and asked us to take it."""
    metadata = manifest["metadata"]
    labels, owners = metadata.get("labels") or {}, metadata.get("ownerReferences") or ()
    earlier = (API_VERSION, "ModelEndpoint", endpoint)
    others = [each for each in owners if (each.get("apiVersion"), each.get("kind"), each.get("name")) != earlier]
    return (labels.get(OWNED_LABEL), labels.get(ENDPOINT_LABEL)) == ("ModelEndpoint", endpoint) and not others


def instance_of(manifest: Manifest) -> str:
    """The operator whose object it is; empty: nobody's yet, and so of the first one that writes."""
    return str((manifest.get("status") or {}).get("instance") or "")


def whose(manifest: Manifest) -> str:
    """An object of somebody else in words: what it is, and whose."""
    metadata, owner = manifest["metadata"], controller_of(manifest)
    managers = [str(each.get("manager")) for each in metadata.get("managedFields") or () if each.get("manager")]
    if owner:
        words = f"belongs to {owner.get('kind')} {owner.get('name')} (UID {owner.get('uid')})"
    else:
        words = f"was made by {managers[0]}, and no owner is named" if managers else "has no owner"
    return f"{manifest['kind']} {metadata['name']} {words}"
