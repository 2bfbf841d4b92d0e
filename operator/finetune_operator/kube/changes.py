"""Which events tell something new.

Half of all events are echoes: of our own status writes, of finalizers that the Job controller puts on pods and takes
away, of counters in a Job's status. A look at an object costs calls to the apiserver; an echo should cost none.
"""

from __future__ import annotations

import json
from typing import Any

from finetune_operator.ports import Manifest


class Changes:
    """Remembers what was seen of each object (a number each), by its UID."""

    def __init__(self, *, instance: str = "") -> None:
        """`instance`: whose objects are looked after."""
        self._instance = instance
        self._seen: dict[str, int] = {}

    def is_news(self, *, manifest: Manifest, type: str | None) -> bool:
        """Whether an event is worth a look. `type` is ADDED, MODIFIED, DELETED, or None for an object of a list.

        Listed objects always are: a list begins a new watch, and what happened before it is unknown.
        """
        uid = str(manifest["metadata"].get("uid", ""))
        if type == "DELETED":
            self._seen.pop(uid, None)
            return True
        now = hash(json.dumps(relevant(manifest, instance=self._instance), sort_keys=True))
        before = self._seen.get(uid)
        self._seen[uid] = now
        return type is None or now != before


def relevant(manifest: Manifest, *, instance: str = "") -> list[Any]:
    """The parts of an object that decisions rest on."""
    metadata, spec, status = manifest["metadata"], manifest.get("spec") or {}, manifest.get("status") or {}
    deleted = metadata.get("deletionTimestamp")
    if manifest.get("kind") == "Pod":
        return [deleted, spec.get("nodeName"), status]
    if manifest.get("kind") == "Job":
        return [deleted, spec.get("suspend"), status.get("conditions")]
    if manifest.get("kind") == "Deployment":
        counts = [status.get("replicas"), status.get("readyReplicas")]
        return [deleted, metadata.get("generation"), *counts, status.get("conditions")]
    # Our own types: the status is ours to write, and no news to us unless it says that another operator begins or ends.
    other = (status.get("instance") or instance) != instance
    return [deleted, metadata.get("generation"), metadata.get("labels"), metadata.get("annotations"), other]
