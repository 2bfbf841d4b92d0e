"""Whole runs on real nodes: from `kubectl apply` to a ModelVersion."""

from __future__ import annotations

import pytest
from tests.cluster.jobs import Workspace, classifier, condition, dumped, phase
from tests.harness import wait_until


@pytest.mark.parametrize("nodes", [1, 2], ids=["one-pod", "two-pods"])
@pytest.mark.timeout(1200)
def test_job_trains_and_proves_a_model(workspace: Workspace, nodes: int) -> None:
    name = f"topics-{nodes}"
    workspace.apply(classifier(name, compute={"nodes": nodes}))
    job = workspace.finished(name)

    assert phase(job) == "Succeeded", dumped(job)
    assert condition(job, "Ready")["status"] == "True"
    assert not {"Reconciling", "Stalled"} & {c["type"] for c in job["status"]["conditions"] if c["status"] == "True"}
    assert [stage["state"] for stage in job["status"]["stages"]] == ["Complete"] * 3
    version = workspace.kubectl.get(
        "modelversion", job["status"]["modelVersion"]["name"], namespace=workspace.namespace
    )
    (accuracy,) = [row for row in version["spec"]["evaluation"]["results"] if row["metric"] == "accuracy"]
    assert version["spec"]["evaluation"]["verdict"] == "Pass"
    assert accuracy["low"] > 0.1
    assert accuracy["candidate"] > 0.6
    assert len(workspace.children("pods", name, stage="Train")) == nodes

    artifact = version["spec"]["artifact"]["uri"]
    assert artifact.startswith("pvc://models/runs/")
    folder = workspace.folder / artifact.removeprefix("pvc://models/")
    assert (folder / "model.safetensors").exists()
    assert list(folder.parent.glob("evaluation/report.html"))

    workspace.kubectl.delete("finetunejob", name, namespace=workspace.namespace)
    for kind in ("jobs", "pods", "configmaps", "services"):
        wait_until(lambda kind=kind: not workspace.children(kind, name), what=f"{kind} of {name} gone", timeout_s=60)
    assert workspace.kubectl.find("modelversion", name, namespace=workspace.namespace) is not None
    assert (folder / "model.safetensors").exists()


@pytest.mark.timeout(1200)
def test_a_model_that_is_not_better_is_rejected(workspace: Workspace) -> None:
    workspace.apply(
        classifier(
            "hopeless",
            training={"epochs": None, "maxSteps": 2, "learningRate": 1e-7},
            evaluation={"metrics": [{"name": "accuracy", "minImprovement": 0.3}]},
        )
    )
    job = workspace.finished("hopeless")
    assert phase(job) == "Rejected", dumped(job)
    assert condition(job, "Stalled")["status"] == "True"
    version = workspace.kubectl.get("modelversion", "hopeless", namespace=workspace.namespace)
    assert version["spec"]["evaluation"]["verdict"] in ("Fail", "Inconclusive")


@pytest.mark.timeout(1200)
def test_suspending_keeps_what_was_trained(workspace: Workspace) -> None:
    workspace.apply(classifier("pausing", training={"epochs": None, "maxSteps": 64}))
    workspace.wait(
        "pausing", lambda job: (job.get("status", {}).get("checkpoint") or {}).get("step"), what="a checkpoint"
    )
    workspace.kubectl.patch("finetunejob", "pausing", {"spec": {"suspend": True}}, namespace=workspace.namespace)
    suspended = workspace.wait("pausing", lambda job: phase(job) == "Suspended", what="Suspended")
    wait_until(lambda: not workspace.children("pods", "pausing", stage="Train"), what="no training pods", timeout_s=150)
    saved = suspended["status"]["checkpoint"]["step"]
    workspace.kubectl.patch("finetunejob", "pausing", {"spec": {"suspend": False}}, namespace=workspace.namespace)
    job = workspace.finished("pausing")
    assert phase(job) == "Succeeded", dumped(job)
    train = next(stage for stage in job["status"]["stages"] if stage["name"] == "Train")
    assert train["result"]["resumedFromStep"] >= saved
    assert (job["status"].get("restarts") or {}).get("failures", 0) == 0
