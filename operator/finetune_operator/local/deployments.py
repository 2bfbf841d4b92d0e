"""What the Deployment controller does: pods for Deployments, as many as wanted, by the template as it is now.

A change of the template is rolled out one pod at a time: a new one first, and when it is ready an old one goes. There
are no ReplicaSets in between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from finetune_operator.core.ownership import is_owned
from finetune_operator.core.ports import Manifest
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.pod_status import is_over, is_ready

TEMPLATE_LABEL = "pod-template-hash"
_SURGE = 1


class DeploymentController:
    """Keeps the pods of Deployments. `manage` starts, finds or ends the processes of a pod."""

    def __init__(self, *, cluster: LocalCluster, manage: Callable[[Manifest], None]) -> None:
        self._cluster = cluster
        self._manage = manage
        self._closed: set[str] = set()

    def close(self, deployment: Manifest) -> None:
        """From now on this Deployment has no pods, until the next process takes it up."""
        self._closed.add(deployment["metadata"]["uid"])
        self.sync(deployment)

    def sync(self, deployment: Manifest) -> None:
        """Look at a Deployment and do what it needs now. Every change of it or of its pods calls this again."""
        current = self._cluster.current(deployment)
        if current is None:
            return
        wanted = 0 if current["metadata"]["uid"] in self._closed else int(current["spec"].get("replicas", 1))
        revision = _revision(current)
        pods = self.pods(current)
        new = [pod for pod in pods if pod["metadata"]["labels"][TEMPLATE_LABEL] == revision]
        # A pod that is being ended still has its port: the one that takes its place waits for that.
        while len(new) < wanted and len(pods) < wanted + _SURGE:
            labels = {TEMPLATE_LABEL: revision}
            made = self._cluster.add_pod(current, part=revision, labels=labels, annotations={}, forever=True)
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
        own = [pod for pod in found if is_owned(pod, uid=metadata["uid"])]
        return sorted(own, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

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


def _lives(pod: Manifest) -> bool:
    return pod["metadata"].get("deletionTimestamp") is None and not is_over(pod)
