"""`finetune run` with real processes and a real model, from a manifest to a version."""

from __future__ import annotations

import json
import re
from importlib.metadata import version as version_of
from pathlib import Path

import pytest
from tests.forking import forked_python
from tests.local.conftest import MINILM, Workspace

# Most of this is spent importing torch, several times a run: seconds on an idle machine, minutes on a busy one.
pytestmark = pytest.mark.timeout(1200)


def test_from_a_manifest_to_a_version(workspace: Workspace) -> None:
    workspace.write_data(rows=120)
    manifest = workspace.write_job(
        model=MINILM, training={"epochs": 8, "learningRate": 0.0003, "globalBatchSize": 8, "maxLength": 32}
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
    assert report.read_text().lower().startswith("<!doctype html>")
    assert str(report).startswith(str(workspace.folder / "runs")), "file://./runs is beside the manifest"

    workspace.python = forked_python()
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
    assert "loss" in workspace.finetune("logs", "job", "--stage", "Train", "--local").stdout
    doctor = workspace.finetune("doctor", "--local")
    assert doctor.returncode == 0, doctor.stdout
    assert re.search(rf"torch +ok +{re.escape(version_of('torch'))}", doctor.stdout), doctor.stdout

    again = workspace.finetune("run", "-f", manifest)
    assert again.returncode == 0
    assert "job: Succeeded" in again.stdout
    assert workspace.status()["stages"][1]["attempt"] == 1, "what has succeeded is not run again"

    changed = workspace.write_job(model=MINILM, training={"maxSteps": 3})
    refused = workspace.finetune("run", "-f", changed)
    assert refused.returncode == 2
    assert "spec: Invalid value: spec.training is immutable; create a new FineTuneJob instead" in refused.stderr
    assert "give the changed one another metadata.name" in refused.stderr


def test_what_is_not_proven_is_rejected(quick: Workspace) -> None:
    quick.write_data()
    metrics = [{"name": "accuracy", "thresholdRange": {"min": 0.999}}]
    manifest = quick.write_job(
        training={"maxSteps": 1, "maxLength": 32},
        evaluation={"baseline": "Base", "metrics": metrics, "onInconclusive": "Reject"},
    )
    ended = quick.finetune("run", "-f", manifest)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "job: Rejected" in ended.stdout
    versions = quick.finetune("get", "versions", "-o", "name", "--local").stdout
    assert versions == "modelversion.finetune.dev/job\n", "a rejected version is recorded, too"


def test_a_job_that_waits_for_somebody_is_not_done(quick: Workspace) -> None:
    quick.write_data()
    ended = quick.finetune("run", "-f", quick.write_job(suspend=True))
    assert "job is suspended: its manifest says spec.suspend: true" in ended.stdout
    assert ended.returncode == 4, "a script would take 0 for a version that is proven"
