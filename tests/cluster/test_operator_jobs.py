"""Whole runs on real nodes: from `kubectl apply` to a ModelVersion."""

from __future__ import annotations

import pytest
from tests.cluster.jobs import LONG, Workspace, classifier, condition, dumped, resumed, running_training
from tests.cluster.operator_install import SYSTEM
from tests.harness import wait_until


@pytest.mark.timeout(1700)
def test_two_pods_train_and_prove_a_model_though_one_is_deleted(workspace: Workspace) -> None:
    """One pod does, undisturbed, in test_production_loop.py."""
    name = "topics"
    # The strategy that exchanges most, in an image without a compiler; others do on the processes of one machine.
    workspace.apply(classifier(name, training=LONG, compute={"nodes": 2, "strategy": "DeepSpeedZeRO3"}))
    running_training(workspace, name)
    pods = workspace.children("pods", name, stage="Train")
    assert len(pods) == 2
    workspace.kubectl.delete("pod", pods[1]["metadata"]["name"], namespace=workspace.namespace, wait=False)
    job = workspace.finished(name)

    resumed(job)
    assert job["status"]["restarts"]["preemptions"] == 1, dumped(job)
    assert condition(job, "Ready")["status"] == "True"
    assert not {"Reconciling", "Stalled"} & {c["type"] for c in job["status"]["conditions"] if c["status"] == "True"}
    assert [stage["state"] for stage in job["status"]["stages"]] == ["Complete"] * 3
    assert job["status"]["instance"] == SYSTEM, "the operator that worked on it, by its namespace"
    version = workspace.kubectl.get(
        "modelversion", job["status"]["modelVersion"]["name"], namespace=workspace.namespace
    )
    (accuracy,) = [row for row in version["spec"]["evaluation"]["results"] if row["metric"] == "accuracy"]
    assert version["spec"]["evaluation"]["verdict"] == "Pass"
    assert accuracy["low"] > 0.1
    assert accuracy["candidate"] > 0.6

    artifact = version["spec"]["artifact"]["uri"]
    assert artifact.startswith("pvc://models/runs/")
    folder = workspace.folder / artifact.removeprefix("pvc://models/")
    assert (folder / "model.safetensors").exists()
    assert list(folder.parent.glob("evaluation/report.html"))

    workspace.kubectl.delete("finetunejob", name, namespace=workspace.namespace)
    for kind in ("jobs", "pods", "configmaps", "services"):
        wait_until(lambda kind=kind: not workspace.children(kind, name), what=f"{kind} of {name} gone")
    assert workspace.kubectl.find("modelversion", name, namespace=workspace.namespace) is not None
    assert (folder / "model.safetensors").exists()
