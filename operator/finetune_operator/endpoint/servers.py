"""What a version's Deployment and pods say, read once into plain facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from finetune_api.results import PERMANENT_EXIT_CODES
from finetune_operator.controller import ChildRef
from finetune_operator.endpoint.observed import Server
from finetune_operator.job.times import parse_time
from finetune_operator.ports import Manifest

CONTAINER = "server"
_MOST_CRASHES = 5
"""A server that ended this often without ever being ready will not become so."""


def server_of(
    *, version_uid: str, deployment: Manifest, pods: Sequence[Manifest], refs: tuple[ChildRef, ...]
) -> Server:
    """The facts of one version's servers."""
    spec, status = deployment["spec"], deployment.get("status") or {}
    wanted = int(spec.get("replicas", 1))
    current = int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0))
    ready = int(status.get("readyReplicas") or 0)
    updated = int(status.get("updatedReplicas") or 0)
    living = [pod for pod in pods if pod["metadata"].get("deletionTimestamp") is None]
    scheduled = [time for pod in living if (time := _scheduled(pod)) is not None]
    return Server(
        version_uid=version_uid,
        refs=refs,
        ready=current and ready >= wanted and updated >= wanted,
        ready_replicas=ready,
        scheduled_since=min(scheduled, default=None),
        unschedulable=next((why for pod in living if (why := _unschedulable(pod))), None),
        failure=next((why for pod in living if (why := _failure(pod))), None) if ready == 0 else None,
        trouble=next((why for pod in living if (why := _trouble(pod))), None) or _replica_failure(status),
    )


def _container(pod: Manifest) -> dict[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((each for each in statuses if each.get("name") == CONTAINER), {})


def _ended(pod: Manifest) -> dict[str, Any] | None:
    """How the container ended, now or the last time."""
    container = _container(pod)
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        if state.get("terminated"):
            return dict(state["terminated"])
    return None


def _failure(pod: Manifest) -> str | None:
    ended = _ended(pod)
    if ended is None:
        return None
    words = _words(ended)
    if ended.get("exitCode") in {int(code) for code in PERMANENT_EXIT_CODES}:
        return words
    restarts = int(_container(pod).get("restartCount") or 0)
    return f"its server ended {restarts} times: {words}" if restarts >= _MOST_CRASHES else None


def _trouble(pod: Manifest) -> str | None:
    waiting = (_container(pod).get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason and reason not in ("ContainerCreating", "PodInitializing", "CrashLoopBackOff"):
        return f"{reason}: {message}" if message else reason
    ended = _ended(pod)
    return _words(ended) if ended is not None else None


def _words(ended: dict[str, Any]) -> str:
    """The termination message's own words, where it is one of ours."""
    try:
        said = json.loads(ended.get("message") or "")
        return f"{said['reason']}: {said['message']}"
    except (ValueError, KeyError, TypeError):
        reason = ended.get("reason") or "Error"
        return f"{reason} (exit status {ended.get('exitCode')})"


def _scheduled(pod: Manifest) -> Any:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "True":
            return parse_time(condition.get("lastTransitionTime"))
    return None


def _unschedulable(pod: Manifest) -> str | None:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "no node was found")
    return None


def _replica_failure(status: dict[str, Any]) -> str | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message") or condition.get("reason"))
    return None
