"""Jobs of the cluster tests: the samples' shape, small enough to end in a minute on two cores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import assets
from tests.harness import Kubectl, Object
from tests.harness.cluster import Cluster
from tests.patience import JOB_HANGS_S

TERMINAL = {"Succeeded", "Rejected", "Failed"}
LABEL = "finetune.dev/job"
_POD_USER = 65532
LONG = {"epochs": None, "maxSteps": 64}
"""Three checkpoints: time to break a training after the first one, little to wait for after that."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A namespace with a claim `models` that holds a base model and data."""

    cluster: Cluster
    namespace: str
    folder: Path
    """What the claim shows, on this machine."""

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as an administrator."""
        return self.cluster.kubectl

    def apply(self, job: dict[str, Any]) -> None:
        """Create or change a job."""
        self.kubectl.apply(job, namespace=self.namespace)

    def job(self, name: str) -> Object:
        """A FineTuneJob."""
        return self.kubectl.get("finetunejob", name, namespace=self.namespace)

    def wait(self, name: str, condition: Callable[[Object], object], *, what: str) -> Object:
        """Wait for a state of a job; stop early with its status when it ends otherwise."""
        return self.kubectl.wait_for(
            "finetunejob",
            name,
            lambda job: condition(job) or (job.get("status", {}).get("phase") in TERMINAL and "ended"),
            namespace=self.namespace,
            timeout_s=JOB_HANGS_S,
            what=what,
        )

    def finished(self, name: str) -> Object:
        """Wait until a job has ended."""
        return self.wait(name, lambda _: False, what="the end")

    def children(self, kind: str, name: str, **labels: str) -> list[Object]:
        """The children of a job."""
        selector = ",".join([f"{LABEL}={name}", *(f"finetune.dev/{key}={value}" for key, value in labels.items())])
        return list(self.kubectl.list(kind, namespace=self.namespace, selector=selector))


def prepare(*, cluster: Cluster, namespace: str) -> Workspace:
    """A claim with MiniLM and the topic data of the samples."""
    folder = cluster.volume("models", namespace=namespace)
    shutil.copytree(assets.minilm(), folder / "all-minilm-l6-v2", dirs_exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    assets.topic_labelled(folder / "data" / "topics-labelled.jsonl")
    give_to_pods(folder)
    return Workspace(cluster=cluster, namespace=namespace, folder=folder)


def give_to_pods(folder: Path) -> None:
    """Make all that is there the property of the user that pods run as."""
    for path in [folder, *folder.rglob("*")]:
        shutil.chown(path, _POD_USER, _POD_USER)


def classifier(name: str, **changes: Any) -> dict[str, Any]:
    """A small FineTuneJob: MiniLM as a classifier. `changes` are merged into the spec."""
    spec: dict[str, Any] = {
        "artifacts": {"uri": "pvc://models/runs"},
        "model": {"uri": "pvc://models/all-minilm-l6-v2", "task": "SequenceClassification"},
        "data": {
            "sources": [
                {"name": "topics", "uri": "pvc://models/data/topics-labelled.jsonl", "format": "Labelled"},
            ],
            "split": {"train": 0.65, "validation": 0.1, "test": 0.25, "strategy": "Stratified", "by": "label"},
        },
        "method": {"type": "Full"},
        "training": {"epochs": 3, "learningRate": 0.0003, "globalBatchSize": 16, "maxLength": 64, "seed": 7},
        "checkpoint": {"everySteps": 20},
        "evaluation": {"baseline": "Base", "metrics": [{"name": "accuracy", "minImprovement": 0.1}]},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": merged(spec, changes),
    }


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`; None removes."""
    result = deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def condition(job: Object, type_: str) -> dict[str, Any]:
    """A condition of a job, empty where it is not set."""
    found: dict[str, Any] = next((c for c in job["status"]["conditions"] if c["type"] == type_), {})
    return found


def running_training(workspace: Workspace, name: str, *, after: int = 0) -> Object:
    """The job once a checkpoint of its training is recorded, newer than that of the step `after`."""

    def trains(job: Object) -> bool:
        return phase(job) == "Training" and checkpoint(job) > after

    job = workspace.wait(name, trains, what=f"a checkpoint after step {after}")
    assert trains(job), dumped(job)
    return job


def resumed(job: Object) -> int:
    """The step that the training went on from; fails where it began anew."""
    assert phase(job) == "Succeeded", dumped(job)
    train = next(stage for stage in job["status"]["stages"] if stage["name"] == "Train")
    assert train["result"].get("resumedFromStep"), f"training began again from zero: {dumped(job)}"
    return int(train["result"]["resumedFromStep"])


def checkpoint(job: Object) -> int:
    """The step of the recorded checkpoint, 0 before the first."""
    return int(job.get("status", {}).get("checkpoint", {}).get("step") or 0)


def phase(job: Object) -> str:
    """The phase, empty before the first reconcile."""
    return str(job.get("status", {}).get("phase", ""))


def steps_in_checkpoint(folder: Path, *, of: str = "*") -> list[int]:
    """The steps of the complete checkpoints below a folder; `of`: in run folders of that name."""
    found = folder.rglob(f"{of}/checkpoints/step-*/COMPLETE")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def dumped(job: Object) -> str:
    """The status, for a failing assertion's message."""
    return json.dumps(job.get("status"), indent=1)
