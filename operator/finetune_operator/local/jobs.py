"""What the Job controller does: pods for Jobs, one for each index, and the Job's own status.

Only what the operator's Jobs use: Indexed, backoffLimit 0, a podFailurePolicy of FailJob rules, suspension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_operator.attempts.pods import INDEX_ANNOTATION
from finetune_operator.core.names import KUEUE_QUEUE_LABEL
from finetune_operator.core.ports import Clock, Manifest
from finetune_operator.local.cluster import LocalCluster, rfc3339

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
CONTROLLER_LABEL = "batch.kubernetes.io/controller-uid"
INDEX_LABEL = INDEX_ANNOTATION


class JobController:
    """Brings Jobs closer to their end. `manage` starts, finds or ends the processes of a pod."""

    def __init__(self, *, cluster: LocalCluster, clock: Clock, manage: Callable[[Manifest], None]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._manage = manage
        self._closed: set[str] = set()

    def close(self, job: Manifest) -> None:
        """From now on this Job has no pods, until the next process takes it up: as if it had been suspended."""
        self._closed.add(job["metadata"]["uid"])
        self.sync(job)

    def sync(self, job: Manifest) -> None:
        """Look at a Job and do what it needs now. Every change of it or of its pods calls this again."""
        current = self._cluster.current(job)
        if current is None or is_finished(current):
            return
        if current["spec"].get("suspend") and KUEUE_QUEUE_LABEL in (current["metadata"].get("labels") or {}):
            # There is no queue here to wait in, and nobody else to make room for.
            self._cluster.store.write({**current, "spec": {**current["spec"], "suspend": False}})
            return
        pods = self._pods(current)
        if job["metadata"]["uid"] in self._closed:
            self._stop(pods)
            return
        suspended = bool(current["spec"].get("suspend"))
        failed = next((pod for pod in pods if _phase(pod) == "Failed"), None)
        if suspended or failed is not None or _condition(current, "FailureTarget"):
            self._stop(pods)
        else:
            pods += self._create_missing(current, pods)
        self._write_status(current, pods=pods, failed=failed, suspended=suspended)

    def _pods(self, job: Manifest) -> list[Manifest]:
        labels = {CONTROLLER_LABEL: job["metadata"]["uid"]}
        return self._cluster.store.find(kind="Pod", namespace=job["metadata"]["namespace"], labels=labels)

    def _create_missing(self, job: Manifest, pods: list[Manifest]) -> list[Manifest]:
        present = {pod["metadata"]["annotations"][INDEX_ANNOTATION] for pod in pods}
        wanted = [str(index) for index in range(job["spec"].get("completions", 1))]
        made = []
        for index in wanted:
            if index not in present:
                metadata, note = job["metadata"], {INDEX_ANNOTATION: index}
                labels = {JOB_NAME_LABEL: metadata["name"], CONTROLLER_LABEL: metadata["uid"], INDEX_LABEL: index}
                pod = self._cluster.add_pod(job, part=index, labels=labels, annotations=note, forever=False)
                self._manage(pod)
                made.append(pod)
        return made

    def _stop(self, pods: list[Manifest]) -> None:
        for pod in pods:
            if _phase(pod) not in ("Succeeded", "Failed"):
                self._cluster.delete_pod(pod)
                self._manage(pod)

    def _write_status(self, job: Manifest, *, pods: list[Manifest], failed: Manifest | None, suspended: bool) -> None:
        now = rfc3339(self._clock())
        before = job.get("status") or {}
        conditions = [dict(each) for each in before.get("conditions") or ()]
        active = [pod for pod in pods if _phase(pod) in ("Pending", "Running")]
        succeeded = [pod for pod in pods if _phase(pod) == "Succeeded"]
        status: dict[str, Any] = {
            "startTime": before.get("startTime") or now,
            "active": len(active),
            "succeeded": len(succeeded),
            "failed": len([pod for pod in pods if _phase(pod) == "Failed"]),
        }
        if suspended or _condition(job, "Suspended"):
            _set(conditions, "Suspended", reason="JobSuspended", message="Job suspended", now=now, value=suspended)
        if failed is not None and not _condition(job, "FailureTarget"):
            reason, message = failure_of(job=job, pod=failed)
            _set(conditions, "FailureTarget", reason=reason, message=message, now=now)
        target = next((each for each in conditions if each["type"] == "FailureTarget"), None)
        if target is not None and not active:
            _set(conditions, "Failed", reason=target["reason"], message=target["message"], now=now)
        elif len(succeeded) == job["spec"].get("completions", 1):
            message = "Reached expected number of succeeded pods"
            for name in ("SuccessCriteriaMet", "Complete"):
                _set(conditions, name, reason="CompletionsReached", message=message, now=now)
            status["completionTime"] = now
        if conditions:
            status["conditions"] = conditions
        self._cluster.set_status(job, status)


def failure_of(*, job: Manifest, pod: Manifest) -> tuple[str, str]:
    """Reason and message of a Job's failure because of a pod, as the Job controller words them."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    ended = {each["name"]: each["state"]["terminated"] for each in statuses if "terminated" in each["state"]}
    where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for number, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules") or ()):
        codes = rule.get("onExitCodes") or {"operator": "In", "values": []}
        for name, state in ended.items():
            if rule["action"] == "FailJob" and (state["exitCode"] in codes["values"]) == (codes["operator"] == "In"):
                message = f"Container {name} for pod {where} failed with exit code {state['exitCode']}"
                return "PodFailurePolicy", f"{message} matching FailJob rule at index {number}"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def is_finished(job: Manifest) -> bool:
    """Whether the Job is complete or has failed for good."""
    return _condition(job, "Complete") or _condition(job, "Failed")


def _condition(job: Manifest, name: str) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(each["type"] == name and each["status"] == "True" for each in conditions)


def _set(
    conditions: list[dict[str, Any]], name: str, *, reason: str, message: str, now: str, value: bool = True
) -> None:
    status = "True" if value else "False"
    existing = next((each for each in conditions if each["type"] == name), None)
    if existing is None:
        existing = {"type": name}
        conditions.append(existing)
    if existing.get("status") != status:
        existing |= {"status": status, "reason": reason, "message": message, "lastTransitionTime": now}


def _phase(pod: Manifest) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))
