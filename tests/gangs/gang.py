"""One run of two pods: what its status, its pods and its folder say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import containers
from tests.cluster.jobs import Workspace, classifier, dumped, merged, steps_in_checkpoint
from tests.harness import Object, wait_until
from tests.patience import HANGS_S

EVERY_STEPS = 10
STEPS = 400
BASE = "small-encoder"
HANG_S = 40
_RANK = b"finetune_trainer.training.worker"
_SPREAD = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "ScheduleAnyway",
}


@dataclass(kw_only=True)
class Gang:
    """A FineTuneJob that trains in two pods, one on each node as long as there are two."""

    workspace: Workspace
    name: str
    strategy: str
    passed: int = 0
    """The step of the checkpoint that the last interruption left."""
    learned: Learned | None = None
    """What came out of it, once it has ended."""

    def start(self, **changes: Any) -> None:
        """Apply it."""
        spread = {**_SPREAD, "labelSelector": {"matchLabels": {"finetune.dev/job": self.name}}}
        spec: dict[str, Any] = {
            "model": {"uri": f"pvc://models/{BASE}"},
            "training": {"epochs": None, "maxSteps": STEPS},
            "checkpoint": {"everySteps": EVERY_STEPS, "keep": 3},
            "failurePolicy": {"hangSeconds": HANG_S, "maxFailures": 9},
            "compute": {
                "nodes": 2,
                "strategy": self.strategy,
                "resources": {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
                "podTemplate": {"spec": {"topologySpreadConstraints": [spread]}},
            },
        }
        self.workspace.apply(classifier(self.name, **merged(spec, changes)))

    def job(self) -> Object:
        return self.workspace.job(self.name)

    def trained_further(self) -> Object:
        """The job once two pods train, and there is a checkpoint that is newer than what the last interruption left.

        In its folder: reports of it come seconds later, when the training may have ended.
        """

        trains = False

        def look(_: Object) -> bool:
            nonlocal trains
            trains = self.saved > self.passed and len(self.pods()) == 2
            return trains

        job = self.workspace.wait(self.name, look, what=f"a checkpoint after step {self.passed}")
        assert trains, f"it ended before it was interrupted once more: {dumped(job)}"
        return job

    @property
    def saved(self) -> int:
        """The step of its newest checkpoint."""
        return max(steps_in_checkpoint(self.workspace.folder / "runs", of=f"{self.name}-*"), default=0)

    def pods(self, *, phase: str = "Running") -> Sequence[Object]:
        """Those that train now, or have ended well, by their index."""
        return sorted(
            (
                pod
                for pod in self.workspace.children("pods", self.name, stage="Train")
                if pod["status"]["phase"] == phase and "deletionTimestamp" not in pod["metadata"]
            ),
            key=lambda pod: int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]),
        )

    def processes(self, index: int) -> list[int]:
        """Pids, on this machine, of what trains in the pod of an index: its agent and its rank."""
        uid = self.pods()[index]["metadata"]["uid"]
        return containers.processes(pod_uids=[uid], module=_RANK)

    def restarted(self, before: Object, *, budget: str) -> dict[str, Any]:
        """`status.restarts` once one more attempt is paid for; no other budget has paid."""
        used, other = restarts(before), {"preemptions": "failures", "failures": "preemptions"}[budget]
        wanted = {budget: used.get(budget, 0) + 1, other: used.get(other, 0)}
        job = self.workspace.wait(self.name, lambda job: restarts(job).get(budget) == wanted[budget], what=budget)
        found = restarts(job)
        assert {name: found.get(name, 0) for name in wanted} == wanted, dumped(job)
        self.passed = self.saved
        return found

    def trained(self) -> Object:
        """The job once its training is complete. It goes then: what comes of the model is other tests' affair."""

        def result(job: Object) -> Any:
            (train,) = [each for each in job["status"].get("stages", []) if each["name"] == "Train"] or [{}]
            return train.get("result")

        job = self.workspace.wait(self.name, result, what="the end of its training")
        assert result(job), dumped(job)
        self.workspace.kubectl.delete("finetunejob", self.name, namespace=self.workspace.namespace, wait=False)
        folder = self.workspace.folder / result(job)["artifact"]["uri"].removeprefix("pvc://models/")
        self.learned = Learned.of(result(job), folder=folder)
        return job

    def suspend(self, *, wanted: bool) -> None:
        self.workspace.kubectl.patch(
            "finetunejob", self.name, {"spec": {"suspend": wanted}}, namespace=self.workspace.namespace
        )

    def gone(self) -> None:
        """Wait until no pod of its training is there."""
        children = self.workspace.children
        wait_until(
            lambda: not children("pods", self.name, stage="Train"), what=f"no pods of {self.name}", timeout_s=HANGS_S
        )


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What must be the same, however often a run was interrupted."""

    steps: int
    tokens: int
    validation: dict[int, float]
    """Mean loss over the validation split by step, at the end of each epoch and of the run."""
    weights: str
    """sha256 of model.safetensors."""

    @classmethod
    def of(cls, result: dict[str, Any], *, folder: Path) -> Learned:
        lines = [
            json.loads(line) for line in (folder.parent / "training_log.jsonl").read_text().rstrip("\n").split("\n")
        ]
        return cls(
            steps=result["steps"],
            tokens=result["tokens"],
            validation={line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line},
            weights=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        )


def restarts(job: Object) -> dict[str, Any]:
    """`status.restarts`, empty before the first."""
    return dict(job["status"].get("restarts") or {})
