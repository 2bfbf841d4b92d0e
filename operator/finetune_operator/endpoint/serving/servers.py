"""What a version's Deployment and pods say, read once into plain facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from finetune_api.results import PERMANENT_EXIT_CODES
from finetune_operator.attempts.pods import Ended, read_containers, scheduled_since, unschedulable
from finetune_operator.core.controller import ChildRef
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.observed import Server

CONTAINER = "server"
FETCH = "fetch"
"""The init container that fetches and verifies the artifact where the server does not."""
_MOST_CRASHES = 5
"""A server that ended this often without ever being ready will not become so."""


def server_of(
    *,
    version_uid: str,
    deployment: Manifest,
    pods: Sequence[Manifest],
    refs: tuple[ChildRef, ...] = (),
    container: str = CONTAINER,
) -> Server:
    """The facts of one version's servers, or of the gateways."""
    spec, status = deployment["spec"], deployment.get("status") or {}
    wanted = int(spec.get("replicas", 1))
    current = int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0))
    ready = int(status.get("readyReplicas") or 0)
    updated = int(status.get("updatedReplicas") or 0)
    living = [pod for pod in pods if pod["metadata"].get("deletionTimestamp") is None and not _refused(pod)]
    scheduled = [time for pod in living if (time := scheduled_since(pod)) is not None]
    return Server(
        version_uid=version_uid,
        refs=refs,
        ready=current and ready >= wanted and updated >= wanted,
        ready_replicas=ready,
        replicas=int(status.get("replicas") or 0),
        scheduled_since=min(scheduled, default=None),
        unschedulable=next((why for pod in living if (why := unschedulable(pod))), None),
        failure=next((why for pod in living if (why := _failure(pod))), None) if ready == 0 else None,
        trouble=next((why for pod in living if (why := _trouble(pod, main=container))), None)
        or _replica_failure(status)
        or (next((why for pod in pods if (why := _refused(pod))), None) if ready == 0 else None),
    )


def _failure(pod: Manifest) -> str | None:
    """Why its server will not become ready. An init container of ours (`fetch`) is as good as the server."""
    containers = read_containers(pod, main=CONTAINER)
    for each in (*containers.others, containers.main):
        ended = each.ended or each.last_ended
        if ended is None or ended.exit_code == 0 or each.name not in (CONTAINER, FETCH):
            continue  # what a mesh's containers do is not the version's fault
        if ended.exit_code in {int(code) for code in PERMANENT_EXIT_CODES}:
            return _words(ended)
        if each.restarts >= _MOST_CRASHES:
            what = "server" if each.name == CONTAINER else f"init container {each.name}"
            return f"its {what} ended {each.restarts} times: {_words(ended)}"
    return None


def _trouble(pod: Manifest, *, main: str) -> str | None:
    containers = read_containers(pod, main=main)
    held, ours = containers.held, containers.main
    if held.held:
        where = "" if held.name == main else f"container {held.name}: "
        return f"{where}{held.waiting_reason}: {held.waiting_message}".rstrip(": ")
    if ours.trouble:
        ended = ours.ended or ours.last_ended
        return _words(ended) if ended is not None else ours.trouble
    return containers.trouble or None


def _words(ended: Ended) -> str:
    """The termination message's own words, where it is one of ours."""
    try:
        said = json.loads(ended.message)
        return f"{said['reason']}: {said['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{ended.reason or 'Error'} (exit status {ended.exit_code})"


def _refused(pod: Manifest) -> str:
    """Why a node ended the pod or never took it in; its ReplicaSet makes others, and leaves it lying about."""
    status = pod.get("status") or {}
    if status.get("phase") != "Failed" or not status.get("reason"):
        return ""
    return f"{status['reason']}: {status.get('message', '')}".rstrip(": ")


def _replica_failure(status: dict[str, Any]) -> str | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message") or condition.get("reason"))
    return None
