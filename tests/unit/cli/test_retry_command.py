"""`retry`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.cli.jobs import at, ended, job_with, training

from finetune_api.finetunejob import RETRY, FineTuneJob
from finetune_operator.cli.__main__ import main
from finetune_operator.core.ports import Manifest
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.home import LocalHome


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return LocalCluster(home=LocalHome.at(".finetune"))


def put(cluster: LocalCluster, found: FineTuneJob) -> Manifest:
    manifest = found.to_dict()
    manifest["metadata"] |= {"namespace": "default", "name": "router"}
    return cluster.store.write(manifest)


def failed() -> FineTuneJob:
    stages = [{"name": "Prepare", "state": "Failed", "attempt": 1}]
    ready = {"type": "Ready", "status": "False", "reason": "InputNotFound", "message": "no"}
    return job_with({"phase": "Failed", "completionTime": at(20), "stages": stages, "conditions": [ready]})


def test_the_end_that_was_seen_is_named(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    before = put(cluster, failed())
    assert main(["retry", "job", "router", "--local"]) == 0
    after = cluster.store.read(kind="FineTuneJob", namespace="default", name="router")
    assert after is not None
    assert after["metadata"]["annotations"] == {RETRY: at(20)}
    assert (after["spec"], after["status"]) == (before["spec"], before["status"])
    assert capsys.readouterr().out.splitlines() == [
        "router: somebody asked for it: attempt 2 of Prepare follows",
        "it goes on with: finetune run -f FILE",
    ]
    applied = {**before, "metadata": {"name": "router", "namespace": "default", "annotations": {"team": "a"}}}
    kept = cluster.submit(manifest={key: value for key, value in applied.items() if key != "status"})
    assert kept["metadata"]["annotations"] == {RETRY: at(20), "team": "a"}, "applying the manifest keeps the wish"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (training(), "router has not ended (Training): there is nothing to try again"),
        (ended(phase="Rejected"), "router is not tried again: Rejected is what the run came to"),
    ],
)
def test_where_there_is_nothing_to_try_again(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str], found: FineTuneJob, words: str
) -> None:
    before = put(cluster, found)
    assert main(["retry", "job", "router", "--local"]) == 2
    assert words in capsys.readouterr().err
    assert cluster.store.read(kind="FineTuneJob", namespace="default", name="router") == before
