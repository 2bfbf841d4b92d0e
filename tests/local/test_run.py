"""`finetune run` with real processes and a real model: to the end, and through every interruption."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.local.conftest import Workspace
from tests.local.eventually import wait_for

# Most of this is spent importing torch, several times a run: seconds on an idle machine, minutes on a busy one.
pytestmark = pytest.mark.timeout(1200)


def trained_past(workspace: Workspace, step: int) -> bool:
    """Whether training has left a checkpoint at `step` or later, and is at a later step by now."""
    metrics = workspace.progress()
    return metrics.get("checkpoint_step", 0) >= step and metrics.get("step", 0) > step


def resumed_from(workspace: Workspace) -> float | None:
    """The checkpoint that the training processes that run now went on from."""
    return workspace.progress().get("resumed_from_step")


def stop_now(process: Any) -> None:
    """Ctrl-C twice: no test waits for what follows."""
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)


def test_from_a_manifest_to_a_version(workspace: Workspace) -> None:
    workspace.write_data(rows=120)
    manifest = workspace.write_job(
        training={"epochs": 8, "learningRate": 0.0003, "globalBatchSize": 8, "maxLength": 32}
    )
    ended = workspace.finetune("run", "-f", manifest)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert any("Prepare complete" in line and "rows read" in line for line in lines)
    assert any("Train: " in line and "loss" in line for line in lines)
    assert any(line.startswith("accuracy") and line.endswith("Pass") for line in lines)
    places = {line.split(":", 1)[0]: line.split(":", 1)[1].strip() for line in lines[-3:]}
    assert places["Version"] == "job"
    assert (Path(places["Model"].split(" (")[0]) / "model.safetensors").is_file()
    report = Path(places["Report"])
    assert report.read_text().startswith("<!doctype html>")
    assert str(report).startswith(str(workspace.folder / "runs")), "file://./runs is beside the manifest"

    table = workspace.finetune("get", "jobs", "--local").stdout.splitlines()
    assert table[0].split() == ["NAME", "PHASE", "PROGRESS", "VERSION", "ENDPOINT", "AGE"]
    assert table[1].split()[:4] == ["job", "Succeeded", "100", "job"]
    version = json.loads(workspace.finetune("get", "versions", "job", "-o", "json", "--local").stdout)
    assert version["spec"]["evaluation"]["verdict"] == "Pass"
    assert version["spec"]["lineage"]["job"] == {"name": "job", "uid": workspace.job()["metadata"]["uid"]}
    described = workspace.finetune("describe", "job", "job", "--local").stdout
    assert "Prepare    Complete   1" in described
    assert "Ready" in described
    reported = workspace.finetune("report", "job", "--local").stdout
    assert "job: Pass against the base model" in reported
    assert f"Report: {report}" in reported
    assert "step 5/" in workspace.finetune("logs", "job", "--stage", "Train", "--local").stdout

    again = workspace.finetune("run", "-f", manifest)
    assert again.returncode == 0
    assert "job: Succeeded" in again.stdout
    assert workspace.status()["stages"][1]["attempt"] == 1, "what has succeeded is not run again"

    changed = workspace.write_job(training={"maxSteps": 3})
    refused = workspace.finetune("run", "-f", changed)
    assert refused.returncode == 2
    assert "spec: Invalid value: spec.training is immutable; create a new FineTuneJob instead" in refused.stderr
    assert "give the changed one another metadata.name" in refused.stderr


def test_what_is_not_proven_is_rejected(workspace: Workspace) -> None:
    workspace.write_data(rows=60)
    metrics = [{"name": "accuracy", "thresholdRange": {"min": 0.999}}]
    manifest = workspace.write_job(
        training={"maxSteps": 1, "maxLength": 32},
        evaluation={"baseline": "Base", "metrics": metrics, "onInconclusive": "Reject"},
    )
    ended = workspace.finetune("run", "-f", manifest)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "job: Rejected" in ended.stdout
    assert workspace.finetune("get", "versions", "-o", "name", "--local").stdout == "modelversion.finetune.dev/job\n", (
        "a rejected version is recorded, too"
    )


def test_a_killed_trainer_goes_on_from_its_checkpoint(workspace: Workspace) -> None:
    workspace.write_data()
    process = workspace.start("run", "-f", workspace.write_job(training={"maxSteps": 400, "maxLength": 32}))
    wait_for(lambda: trained_past(workspace, 5), what="a checkpoint")
    worker = workspace.pids()[-1]  # the last in the line of processes is the one that trains
    os.kill(worker, signal.SIGKILL)
    step = wait_for(lambda: resumed_from(workspace), what="a second attempt")
    assert step >= 5
    restarts = wait_for(lambda: workspace.status().get("restarts"))
    assert restarts["failures"] == 1
    assert "ProcessKilled" in json.dumps(workspace.status()["restarts"])
    stop_now(process)


def test_ctrl_c_stops_after_a_checkpoint_and_the_same_command_goes_on(workspace: Workspace) -> None:
    workspace.write_data()
    manifest = workspace.write_job(training={"maxSteps": 400, "maxLength": 32}, checkpoint={"everySteps": 1000})
    process = workspace.start("run", "-f", manifest)
    wait_for(lambda: workspace.progress().get("step", 0) >= 4, what="training")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 130
    status = workspace.status()
    assert status["phase"] == "Suspended"
    step = status["checkpoint"]["step"]
    assert step >= 4, "everySteps is far away: this checkpoint was made because of the signal"
    assert f"job is stopped at step {step}. It goes on with: finetune run -f {manifest}" in out
    assert workspace.pids() == []

    process = workspace.start("run", "-f", manifest)
    assert wait_for(lambda: resumed_from(workspace), what="training from the checkpoint") == step
    assert (workspace.status().get("restarts") or {}).get("failures", 0) == 0, "being stopped is no failure"
    stop_now(process)


def test_a_second_ctrl_c_does_not_wait(workspace: Workspace) -> None:
    workspace.write_data()
    process = workspace.start("run", "-f", workspace.write_job(training={"maxSteps": 400, "maxLength": 32}))
    wait_for(lambda: workspace.progress().get("step", 0) >= 1, what="training")
    for pid in workspace.pids():
        os.kill(pid, signal.SIGSTOP)  # what does not answer to SIGTERM
    process.send_signal(signal.SIGINT)
    wait_for(lambda: workspace.job()["spec"].get("suspend"))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping now" in out
    assert workspace.pids() == []


def test_a_killed_finetune_is_taken_over_by_the_same_command(workspace: Workspace) -> None:
    workspace.write_data()
    manifest = workspace.write_job(training={"maxSteps": 400, "maxLength": 32})
    process = workspace.start("run", "-f", manifest)
    wait_for(lambda: workspace.progress().get("step", 0) >= 1, what="training")
    pids = workspace.pids()
    process.kill()
    process.communicate()
    step = workspace.progress()["step"]
    wait_for(lambda: workspace.progress()["step"] > step, what="training without finetune")

    process = workspace.start("run", "-f", manifest)
    wait_for(lambda: workspace.status()["trainerStatus"]["metrics"][0]["value"] != str(step), what="a new report")
    assert workspace.pids() == pids, "the processes are those of before"
    assert workspace.status()["attempt"] == 1
    stop_now(process)


def test_one_folder_one_process(workspace: Workspace) -> None:
    workspace.write_data()
    manifest = workspace.write_job(training={"maxSteps": 400, "maxLength": 32})
    process = workspace.start("run", "-f", manifest)
    wait_for(lambda: workspace.status().get("phase") == "Preparing")
    other = workspace.finetune("run", "-f", workspace.write_job("other"))
    assert other.returncode == 2
    assert f".finetune is in use by process {process.pid} (finetune run -f" in other.stderr
    follower = workspace.start("run", "-f", manifest)
    assert follower.stderr is not None
    wait_for(lambda: "It runs job; following." in follower.stderr.readline())
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=120)
    assert process.poll() is None, "who only watches stops nothing"
    stop_now(process)
