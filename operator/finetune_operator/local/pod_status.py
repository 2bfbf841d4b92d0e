"""What becomes of a pod, in kubelet's words and shape. Pure."""

from __future__ import annotations

from typing import Any

from finetune_operator.core.ports import Manifest
from finetune_operator.local.processes import Ended

CRASH_LOOP = "CrashLoopBackOff"


def is_over(pod: Manifest) -> bool:
    """Whether the pod has ended for good."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Manifest) -> bool:
    """Whether the pod's container answers as its probes want."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def waits_to_restart(pod: Manifest) -> bool:
    """Whether its container has ended, was counted, and was not started again yet."""
    waiting = (_before(pod).get("state") or {}).get("waiting") or {}
    return bool(waiting.get("reason") == CRASH_LOOP)


def restarts(pod: Manifest) -> int:
    """How often its container was started again."""
    return int(_before(pod).get("restartCount", 0))


def unschedulable(message: str, *, now: str) -> dict[str, Any]:
    """There is no room."""
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": now,
    }
    return _status(phase="Pending", conditions=[condition])


def cannot_start(pod: Manifest, message: str) -> dict[str, Any]:
    """The container cannot be made."""
    status = _container_status(pod, state={"waiting": {"reason": "CreateContainerConfigError", "message": message}})
    return _status(phase="Pending", conditions=[_scheduled(pod)], containerStatuses=[status])


def running(pod: Manifest, *, since: str, ready: bool, now: str) -> dict[str, Any]:
    """The container runs, and is ready or not."""
    status = _container_status(pod, state={"running": {"startedAt": since}}, ready=ready)
    return _status(
        phase="Running",
        conditions=[_scheduled(pod), _ready(pod, ready=ready, now=now)],
        startTime=(pod.get("status") or {}).get("startTime") or since,
        containerStatuses=[status],
    )


def crashed(pod: Manifest, *, ended: Ended, message: str, now: str) -> dict[str, Any]:
    """The container has ended and will be started again."""
    state = {"waiting": {"reason": CRASH_LOOP, "message": "the container ended and is started again"}}
    status = _container_status(pod, state=state)
    status |= {
        "restartCount": restarts(pod) + 1,
        "lastState": {"terminated": _end(pod, ended, message=message, now=now)},
    }
    return _status(
        phase="Running",
        conditions=[_scheduled(pod), _ready(pod, ready=False, now=now)],
        startTime=(pod.get("status") or {}).get("startTime") or now,
        containerStatuses=[status],
    )


def terminated(pod: Manifest, *, ended: Ended, message: str, now: str) -> dict[str, Any]:
    """The container has ended, and the pod with it."""
    end = _end(pod, ended, message=message, now=now)
    status = _container_status(pod, state={"terminated": end})
    return _status(
        phase="Succeeded" if ended.exit_code == 0 else "Failed",
        conditions=[_scheduled(pod)],
        startTime=end["startedAt"],
        containerStatuses=[status],
    )


def _before(pod: Manifest) -> dict[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    before: dict[str, Any] = statuses[0]
    return before


def _end(pod: Manifest, ended: Ended, *, message: str, now: str) -> dict[str, Any]:
    since = (_before(pod).get("state") or {}).get("running", {}).get("startedAt")
    state: dict[str, Any] = {
        "exitCode": ended.exit_code,
        "reason": ended.reason or ("Completed" if ended.exit_code == 0 else "Error"),
        "startedAt": ended.started_at or since or now,
        "finishedAt": ended.finished_at or now,
    }
    if message or ended.message:
        state["message"] = message or ended.message
    if ended.signal is not None:
        state["signal"] = ended.signal
    return state


def _status(*, phase: str, conditions: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"phase": phase, "conditions": conditions, **more}


def _scheduled(pod: Manifest) -> dict[str, Any]:
    time = pod["metadata"]["creationTimestamp"]
    return {"type": "PodScheduled", "status": "True", "lastTransitionTime": time}


def _ready(pod: Manifest, *, ready: bool, now: str) -> dict[str, Any]:
    value = "True" if ready else "False"
    conditions = (pod.get("status") or {}).get("conditions") or ()
    same = next((each for each in conditions if each["type"] == "Ready" and each["status"] == value), None)
    return {"type": "Ready", "status": value, "lastTransitionTime": same["lastTransitionTime"] if same else now}


def _container_status(pod: Manifest, *, state: dict[str, Any], ready: bool = False) -> dict[str, Any]:
    container, before = pod["spec"]["containers"][0], _before(pod)
    status = {
        "name": container["name"],
        "image": container.get("image", ""),
        "ready": ready,
        "restartCount": restarts(pod),
        "state": state,
    }
    return status | ({"lastState": before["lastState"]} if "lastState" in before else {})
