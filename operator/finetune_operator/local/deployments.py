"""What the Deployment controller does: pods for Deployments, as many as wanted, by the template as it is now.

A change of the template is rolled out one pod at a time: a new one first, and when it is ready an old one goes. There
are no ReplicaSets in between.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from typing import Any

from finetune_operator.local.cluster import LocalCluster, rfc3339
from finetune_operator.local.pod_status import is_over, is_ready
from finetune_operator.ports import Clock, Manifest

TEMPLATE_LABEL = "pod-template-hash"
_SURGE = 1


class DeploymentController:
    """Keeps the pods of Deployments. `manage` starts, finds or ends the processes of a pod."""

    def __init__(self, *, cluster: LocalCluster, clock: Clock, manage: Callable[[Manifest], None]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._manage = manage
        self._closed: set[str] = set()

    def close(self, deployment: Manifest) -> None:
        """From now on this Deployment has no pods, until the next process takes it up."""
        self._closed.add(deployment["metadata"]["uid"])
        self.sync(deployment)

    def sync(self, deployment: Manifest) -> None:
        """Look at a Deployment and do what it needs now. Every change of it or of its pods calls this again."""
        metadata = deployment["metadata"]
        current = self._cluster.store.read(kind="Deployment", namespace=metadata["namespace"], name=metadata["name"])
        if current is None or current["metadata"]["uid"] != metadata["uid"]:
            return
        wanted = 0 if metadata["uid"] in self._closed else int(current["spec"].get("replicas", 1))
        revision = _revision(current)
        pods = self.pods(current)
        new = [pod for pod in pods if pod["metadata"]["labels"][TEMPLATE_LABEL] == revision]
        # A pod that is being ended still has its port: the one that takes its place waits for that.
        while len(new) < wanted and len(pods) < wanted + _SURGE:
            made = self._cluster.store.write(self._pod(current, revision=revision))
            self._manage(made)
            new.append(made)
            pods.append(made)
        living = [pod for pod in new if _lives(pod)]
        replaced = len([pod for pod in living if is_ready(pod)]) >= wanted
        old = [pod for pod in pods if pod not in new and _lives(pod)] if replaced else []
        for pod in [*old, *living[wanted:], *(pod for pod in pods if is_over(pod))]:
            self._cluster.delete_pod(pod)
            self._manage(pod)
        self._write_status(current, wanted=wanted, revision=revision)

    def pods(self, deployment: Manifest) -> list[Manifest]:
        """The pods of a Deployment, those that are being ended included; oldest first."""
        metadata = deployment["metadata"]
        labels = deployment["spec"]["selector"]["matchLabels"]
        found = self._cluster.store.find(kind="Pod", namespace=metadata["namespace"], labels=labels)
        own = [pod for pod in found if _owner(pod).get("uid") == metadata["uid"]]
        return sorted(own, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def owner_of(self, pod: Manifest) -> Manifest | None:
        """The Deployment that a pod belongs to, None where it is gone or the pod is another's."""
        owner = _owner(pod)
        if owner.get("kind") != "Deployment":
            return None
        namespace = pod["metadata"]["namespace"]
        found = self._cluster.store.read(kind="Deployment", namespace=namespace, name=owner["name"])
        return found if found is not None and found["metadata"]["uid"] == owner["uid"] else None

    def _pod(self, deployment: Manifest, *, revision: str) -> Manifest:
        metadata, template = deployment["metadata"], deployment["spec"]["template"]
        described = template.get("metadata") or {}
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"]}
        uid, now = secrets.token_hex(16), rfc3339(self._clock())
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{metadata['name']}-{revision}-{uid[:5]}",
                "namespace": metadata["namespace"],
                "uid": f"{uid[:8]}-{uid[8:12]}-{uid[12:16]}-{uid[16:20]}-{uid[20:]}",
                "creationTimestamp": now,
                "labels": {**(described.get("labels") or {}), TEMPLATE_LABEL: revision},
                "annotations": dict(described.get("annotations") or {}),
                "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
            },
            # Containers of a Deployment are started again for as long as the pod is there.
            "spec": {**template["spec"], "restartPolicy": "Always"},
            "status": {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": now}],
            },
        }

    def _write_status(self, deployment: Manifest, *, wanted: int, revision: str) -> None:
        pods = [pod for pod in self.pods(deployment) if _lives(pod)]
        ready = len([pod for pod in pods if is_ready(pod)])
        available = ready >= wanted > 0
        status: dict[str, Any] = {
            "observedGeneration": deployment["metadata"].get("generation", 0),
            "replicas": len(pods),
            "updatedReplicas": len([pod for pod in pods if pod["metadata"]["labels"][TEMPLATE_LABEL] == revision]),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(0, wanted - ready),
            "conditions": [
                {
                    "type": "Available",
                    "status": "True" if available else "False",
                    "reason": "MinimumReplicasAvailable" if available else "MinimumReplicasUnavailable",
                    "message": f"{ready} of {wanted} pods are ready",
                }
            ],
        }
        self._cluster.set_status(deployment, status)


def _revision(deployment: Manifest) -> str:
    template = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()[:8]


def _owner(pod: Manifest) -> dict[str, Any]:
    owners: list[dict[str, Any]] = pod["metadata"].get("ownerReferences") or [{}]
    return owners[0]


def _lives(pod: Manifest) -> bool:
    return pod["metadata"].get("deletionTimestamp") is None and not is_over(pod)
