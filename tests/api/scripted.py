"""In place of kubelet: pods do what the test says. The Job controller and the garbage collector are real."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pydantic import BaseModel
from tests.harness import Kubectl, Object, wait_until

from finetune_operator.attempts.pods import CONTAINER


@dataclass(frozen=True, kw_only=True)
class ScriptedPods:
    """The pods of one job."""

    kubectl: Kubectl
    namespace: str
    job: str

    def of(self, *, stage: str, attempt: int = 1, count: int = 1) -> list[str]:
        """Wait until the pods of an attempt exist; their names."""
        selector = f"finetune.dev/job={self.job},finetune.dev/stage={stage},finetune.dev/attempt={attempt}"

        def probe() -> list[str] | None:
            pods = self.kubectl.list("pods", namespace=self.namespace, selector=selector)
            return [pod["metadata"]["name"] for pod in pods] if len(pods) == count else None

        what = f"{count} pods of {stage} {attempt}"
        return wait_until(probe, what=what, explain=self._state)

    def run(self, pods: list[str]) -> None:
        """The containers are running."""
        for pod in pods:
            state = {"running": {"startedAt": _now()}}
            self._set(pod, phase="Running", state=state, ready=True)

    def succeed(self, pods: list[str], *, result: BaseModel) -> None:
        """The containers end with 0; the first one says what came of it."""
        for number, pod in enumerate(pods):
            message = result.model_dump_json(by_alias=True, exclude_none=True) if number == 0 else ""
            self._end(pod, phase="Succeeded", code=0, message=message)

    def succeed_beside(self, pods: list[str], *, sidecar: str, result: BaseModel) -> None:
        """The containers end with 0, and another one of the pod goes on, which is listed first."""
        message = result.model_dump_json(by_alias=True, exclude_none=True)
        for pod in pods:
            self._end(pod, phase="Running", code=0, message=message)
            found = self.kubectl.get("pod", pod, namespace=self.namespace)["status"]["containerStatuses"]
            beside = {**found[0], "name": sidecar, "ready": True, "started": True, "state": {"running": {}}}
            change = {"status": {"containerStatuses": [beside, *found]}}
            self.kubectl.patch("pod", pod, change, namespace=self.namespace, subresource="status")

    def fail(self, pods: list[str], *, code: int, message: str = "", reason: str = "Error") -> None:
        """The containers end with another code."""
        for pod in pods:
            self._end(pod, phase="Failed", code=code, message=message, reason=reason)

    def _end(self, pod: str, *, phase: str, code: int, message: str, reason: str = "Completed") -> None:
        terminated = {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "startedAt": _now(),
            "finishedAt": _now(),
        }
        self._set(pod, phase=phase, state={"terminated": terminated}, ready=False)

    def _set(self, pod: str, *, phase: str, state: Object, ready: bool) -> None:
        container = {
            "name": CONTAINER,
            "image": "localhost/finetune-trainer:test",
            "imageID": "localhost/finetune-trainer@sha256:" + "e" * 64,
            "ready": ready,
            "started": ready,
            "restartCount": 0,
            "state": state,
        }
        status = {"phase": phase, "startTime": _now(), "containerStatuses": [container]}
        self.kubectl.patch("pod", pod, {"status": status}, namespace=self.namespace, subresource="status")

    def _state(self) -> str:
        return self.kubectl.run("get", "finetunejob,jobs,pods", "-n", self.namespace, "-o", "yaml")[-6000:]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
