"""The Job controller, kubelet and trainer for an endpoint's comparisons: a pod runs for a tick, and then ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from tests.simulation.memory_cluster import MemoryCluster
from tests.simulation.world import void

from finetune_api.results import EvaluateResult, ExitCode, Failure
from finetune_api.run import EvaluateRun, run_adapter
from finetune_api.shared_fields import MetricResult, Verdict
from finetune_operator.core.ports import Manifest

Ends = Verdict | Literal["Crash", "Interrupted", "BadConfiguration", "NoNode", "NoPods", "Runs"]
"""A verdict; or how the container fails; or why it does not end."""
_MADE = "batch.kubernetes.io/job-name"


@dataclass(kw_only=True)
class ComparisonJobs:
    """Plays the Jobs. `ends`: by version name, how its attempts end one after the other; the last one stays."""

    cluster: MemoryCluster
    clock: Callable[[], datetime]
    ends: dict[str, list[Ends]] = field(default_factory=dict)
    ran: list[tuple[str, str]] = field(default_factory=list)
    """Candidate and baseline of each pod that was started, in order."""

    async def play(self) -> None:
        """One second of their work."""
        for job in await self.cluster.list(kind="Job", namespace="ml"):
            if not (job.get("status") or {}).get("conditions"):
                await self._play(job)

    async def order(self, job: Manifest) -> EvaluateRun | None:
        """What the Job's pod is told; None: its ConfigMap is gone."""
        (volume,) = [each for each in job["spec"]["template"]["spec"]["volumes"] if each["name"] == "run"]
        found = await self.cluster.get(kind="ConfigMap", namespace="ml", name=volume["configMap"]["name"])
        if found is None:
            return None
        order = run_adapter.validate_json(found["data"]["run.json"])
        assert isinstance(order, EvaluateRun)
        return order

    async def _play(self, job: Manifest) -> None:
        order = await self.order(job)
        assert order is not None, "the pod cannot be started: its ConfigMap is not there"
        candidate = order.candidate.uri.split("/")[-2]
        planned = self.ends.setdefault(candidate, ["Pass"])
        name = f"{job['metadata']['name']}-0-abcde"
        pod = await self.cluster.get(kind="Pod", namespace="ml", name=name)
        if pod is None and planned[0] == "NoPods":
            return
        if pod is None:
            self.ran.append((candidate, order.baseline.name))
            await self.cluster.create(manifest=_pod(name, job=job))
            self._set(name, _waiting() if planned[0] == "NoNode" else _running(self._time()))
            return
        end = planned[0]
        if end in ("NoNode", "Runs"):
            return
        if len(planned) > 1:
            planned.pop(0)
        self._end(job, name=name, order=order, end=end)

    def _end(self, job: Manifest, *, name: str, order: EvaluateRun, end: Ends) -> None:
        codes = {
            "Crash": ExitCode.INTERNAL_ERROR,
            "Interrupted": ExitCode.STOPPED_AFTER_CHECKPOINT,
            "BadConfiguration": ExitCode.BAD_CONFIGURATION,
        }
        code = codes.get(end, ExitCode.DONE)
        said: Any = Failure(reason="InternalError" if end == "Crash" else "LabelsUnknown", message="oh")
        if end in ("Pass", "Fail", "Inconclusive"):
            said = _result(order, verdict=end)
        terminated = {
            "exitCode": int(code),
            "message": json.dumps(said.to_dict()),
            "startedAt": self._time(),
            "finishedAt": self._time(),
        }
        phase = "Succeeded" if code == ExitCode.DONE else "Failed"
        self._set(name, _status(phase=phase, state={"terminated": terminated}))
        condition = {"type": "Complete" if phase == "Succeeded" else "Failed", "status": "True", "reason": "x"}
        conditions = [condition | {"message": "", "lastTransitionTime": self._time()}]
        self.cluster.edit(
            kind="Job",
            namespace="ml",
            name=job["metadata"]["name"],
            change=lambda found: void(found.__setitem__("status", {"conditions": conditions})),
        )

    def _set(self, name: str, status: dict[str, Any]) -> None:
        self.cluster.edit(
            kind="Pod", namespace="ml", name=name, change=lambda found: void(found.__setitem__("status", status))
        )

    def _time(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")


def _result(order: EvaluateRun, *, verdict: Verdict) -> EvaluateResult:
    high = -0.02 if verdict == "Fail" else 0.1
    row = MetricResult(
        metric="exact_match", candidate=0.8, baseline=0.9, low=-0.2, high=high, n=100, groups=90, verdict=verdict
    )
    assert order.baseline.artifact is not None
    return EvaluateResult(
        verdict=verdict,
        results=[row],
        report=f"{order.output}/report.html",
        examples=100,
        baseline_digest=order.baseline.artifact.digest,
    )


def _pod(name: str, *, job: Manifest) -> Manifest:
    metadata, template = job["metadata"], job["spec"]["template"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ml",
            "labels": template["metadata"]["labels"] | {_MADE: metadata["name"]},
            "annotations": {"batch.kubernetes.io/job-completion-index": "0"},
            "ownerReferences": [{**owner, "controller": True}],
        },
        "spec": template["spec"],
    }


def _status(*, phase: str, state: dict[str, Any]) -> dict[str, Any]:
    return {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]}


def _running(time: str) -> dict[str, Any]:
    return _status(phase="Running", state={"running": {"startedAt": time}})


def _waiting() -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node has a GPU"}
    return {"phase": "Pending", "conditions": [condition]}
