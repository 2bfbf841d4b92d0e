"""What is wrong with a job is said at once where this machine can know it, else by the stage that finds it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.local.conftest import MINILM, Workspace
from tests.local.small_encoder import small_encoder
from tests.wrong_manifests import valid

pytestmark = pytest.mark.timeout(900)

# -- before anything runs: exit status 2, no job -----------------------------------------------------------------------


def refused(quick: Workspace, manifest: Path) -> str:
    ended = quick.finetune("run", "-f", manifest)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert quick.job() == {}, "nothing was made"
    return ended.stderr


def test_a_missing_manifest(quick: Workspace) -> None:
    assert refused(quick, Path("nothing.yaml")) == "error: nothing.yaml does not exist\n"


def test_a_manifest_that_the_apiserver_would_refuse(quick: Workspace) -> None:
    quick.write_data()
    said = refused(quick, quick.write_job(method={"type": "Lora"}))
    assert said.startswith(
        'error: The FineTuneJob "job" is invalid: \n'
        '* spec.method.type: Unsupported value: "Lora": supported values: "Full", "LoRA", "QLoRA", "DoRA", "IA3"\n'
    )


def test_missing_data(quick: Workspace) -> None:
    said = refused(quick, quick.write_job())
    assert f"* spec.data.sources[0].uri: file://{quick.folder}/data.jsonl does not exist" in said


def test_an_unknown_base_model(quick: Workspace) -> None:
    quick.write_data()
    model = {"uri": "file:///no/such/model", "task": "SequenceClassification"}
    assert "spec.model.uri: file:///no/such/model does not exist" in refused(quick, quick.write_job(model=model))


def test_a_uri_outside_the_allowed_roots(quick: Workspace) -> None:
    quick.write_data()
    quick.environment["FINETUNE_ALLOWED_ROOTS"] = f"file://{quick.folder}"
    said = refused(quick, quick.write_job())
    assert f"spec.model.uri: file://{small_encoder()} is outside the allowed roots (file://{quick.folder})" in said


def test_more_gpus_than_there_are(quick: Workspace) -> None:
    quick.write_data()
    quick.environment["CUDA_VISIBLE_DEVICES"] = ""
    said = refused(quick, quick.write_job(compute={"gpusPerNode": 4}))
    assert "spec.compute.gpusPerNode: 4 GPUs are wanted, this machine has 0; apply the manifest to a cluster" in said
    said = refused(quick, quick.write_job(compute={"gpusPerNode": 4, "nodes": 2}))
    assert "spec.compute: 2 nodes with GPUs are more than one machine; apply the manifest to a cluster" in said


def test_a_secret_that_is_not_here(quick: Workspace) -> None:
    quick.write_data()
    artifacts = {"uri": "file://./runs", "secretRef": {"name": "s3"}}
    said = refused(quick, quick.write_job(artifacts=artifacts))
    path = quick.home.secret(name="s3")
    assert f"spec.artifacts.secretRef.name: there is no Secret s3 here; write KEY=VALUE lines into {path}" in said
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("A=1\nsecret words\n")
    said = refused(quick, quick.write_job(artifacts=artifacts))
    assert f"spec.artifacts.secretRef.name: {path} line 2: expected KEY=VALUE" in said
    assert "secret words" not in said
    path.write_bytes("A=ä\n".encode("latin-1"))
    assert f"{path} is not UTF-8" in refused(quick, quick.write_job(artifacts=artifacts))


def test_an_endpoint_and_a_baseline_that_are_not_here(quick: Workspace) -> None:
    quick.write_data()
    evaluation = {"baseline": "topics-0", "metrics": [{"name": "accuracy", "maxRegression": 0.1}]}
    said = refused(quick, quick.write_job(endpointRef={"name": "nowhere"}, evaluation=evaluation))
    assert said.splitlines() == [
        "error: job cannot run here:",
        "* spec.endpointRef: there is no ModelEndpoint nowhere here; serve it beside this command: finetune up -f"
        " ENDPOINT.yaml",
        "* spec.evaluation.baseline: there is no ModelVersion topics-0 here; `finetune get versions --local` lists"
        " those that there are",
    ]


def test_steps_out_of_order(quick: Workspace) -> None:
    """In the words of the apiserver, by `validate` and by `up`."""
    manifest = valid("endpoint")
    manifest["spec"]["rollout"]["steps"][1]["percent"] = 50
    path = quick.folder / "endpoint.yaml"
    path.write_text(yaml.safe_dump(manifest))
    words = "spec.rollout: Invalid value: rollout.steps must come in order of rising percent"
    for command in ("validate", "up"):
        ended = quick.finetune(command, "-f", path)
        assert (ended.returncode, words in ended.stderr + ended.stdout) == (2, True), ended.stderr + ended.stdout
    assert not list(quick.home.objects.glob("modelendpoint/*/*")), "nothing was made"


# -- found by a stage: exit status 1, and the condition says why -------------------------------------------------------


def failed(quick: Workspace, manifest: Path) -> tuple[str, str]:
    """Reason and message of the condition."""
    ended = quick.finetune("run", "-f", manifest)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    conditions = {each["type"]: each for each in quick.status()["conditions"]}
    assert conditions["Stalled"]["status"] == "True"
    message = conditions["Stalled"]["message"]
    assert message in ended.stdout, "what the condition says is on the screen"
    assert quick.status()["stages"][0]["attempt"] == 1, "what cannot change is not tried again"
    return conditions["Stalled"]["reason"], message


def rows(*pairs: tuple[str, str]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)


GOOD = [(f"what is the number {number} of all questions?", ("a", "b")[number % 2]) for number in range(20)]


@pytest.mark.parametrize(
    ("content", "changes", "reason", "words"),
    [
        pytest.param("", {}, "EmptyData", "has no rows", id="empty data"),
        pytest.param("no json\n" * 3, {}, "TooManyBadRows", "is not JSON", id="wrong format"),
        pytest.param(
            rows(*GOOD[:4]),
            {"data": {"sources": [{"name": "topics", "uri": "file://./data.jsonl"}]}},
            "EmptySplit",
            "would be empty",
            id="a split that would be empty",
        ),
        pytest.param(
            rows(*GOOD, ("a lonely one", "c")),
            {
                "data": {
                    "sources": [{"name": "topics", "uri": "file://./data.jsonl"}],
                    "split": {"train": 0.6, "validation": 0.2, "test": 0.2, "strategy": "Stratified"},
                }
            },
            "StratumTooSmall",
            "'c' is seen once",
            id="a label seen once",
        ),
    ],
)
def test_bad_data(quick: Workspace, content: str, changes: dict[str, Any], reason: str, words: str) -> None:
    (quick.folder / "data.jsonl").write_text(content)
    found, message = failed(quick, quick.write_job(**changes))
    assert found == reason
    assert words in message


def test_a_value_that_deepspeed_does_not_take(quick: Workspace) -> None:
    """The file's ConfigMap goes with its job, and the library is asked before anything is trained."""
    quick.write_data()
    compute = {"strategy": "DeepSpeedZeRO2", "configRef": {"name": "mine", "key": "ds.json"}}
    manifest = quick.write_job(compute=compute)
    assert "spec.compute.configRef: there is no ConfigMap mine here" in refused(quick, manifest)
    data = {"ds.json": json.dumps({"zero_optimization": {"reduce_bucket_size": -1}})}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}, "data": data}
    manifest.write_text(f"{manifest.read_text()}---\n{yaml.safe_dump(config)}")
    reason, message = failed(quick, manifest)
    assert reason == "BadDeepSpeedConfig"
    assert "compute.configRef: zero_optimization.reduce_bucket_size: " in message


def test_a_folder_that_is_no_model(quick: Workspace) -> None:
    quick.write_data()
    (quick.folder / "model").mkdir()
    model = {"uri": "file://./model", "task": "SequenceClassification"}
    reason, message = failed(quick, quick.write_job(model=model))
    assert reason == "InputNotFound"
    assert "has no config.json" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 MB: room for the data, not for a model."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(quick: Workspace, small_disk: Path) -> None:
    quick.write_data()
    manifest = quick.write_job(
        artifacts={"uri": f"file://{small_disk}"},
        model=MINILM,
        training={"maxSteps": 1, "maxLength": 32},
        failurePolicy={"maxFailures": 0},
    )
    ended = quick.finetune("run", "-f", manifest)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    conditions = {each["type"]: each for each in quick.status()["conditions"]}
    assert "No space left on device" in conditions["Stalled"]["message"]
    assert "No space left on device" in ended.stdout
