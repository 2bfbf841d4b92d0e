"""Whole runs on real nodes: from `kubectl apply` to a ModelVersion."""

from __future__ import annotations

import pytest
from tests.cluster.jobs import Workspace, classifier, condition, dumped, phase
from tests.harness import wait_until


@pytest.mark.timeout(1200)
def test_two_pods_train_and_prove_a_model(workspace: Workspace) -> None:
    """One pod does in test_production_loop.py."""
    name = "topics"
    workspace.apply(classifier(name, compute={"nodes": 2}))
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
    assert len(workspace.children("pods", name, stage="Train")) == 2

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
