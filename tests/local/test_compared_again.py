"""`finetune up` with a real model: a version that was proven against another one is evaluated again before it is tried.

One endpoint lives through the tests in their order; each takes it up as the one before has left it.
"""

from __future__ import annotations

import copy
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.local.conftest import MINILM, Workspace
from tests.local.eventually import wait_for
from tests.patience import HANGS_S

from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.files import read_json
from finetune_operator.local.services import free_port

pytestmark = pytest.mark.timeout(600)
NAME = "topics"
METRICS = [{"name": "accuracy", "maxRegression": 0.5}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """An endpoint without steps, served, and one version trained against the base model."""
    workspace = Workspace(folder=tmp_path_factory.mktemp("compared"))
    endpoint = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": NAME},
        "spec": {
            "task": "SequenceClassification",
            "serving": {"runtime": "FastAPI"},
            "gateway": {"replicas": 1},
            "rollout": {"guard": {"durationSeconds": 0}},
        },
    }
    (workspace.folder / "endpoint.yaml").write_text(yaml.safe_dump(endpoint))
    workspace.write_data(rows=160)
    job = workspace.write_job(
        "first",
        endpointRef={"name": NAME},
        model=MINILM,
        training={"maxSteps": 12, "learningRate": 0.0005, "globalBatchSize": 8, "maxLength": 32},
        evaluation={"baseline": "Base", "metrics": METRICS},
    )
    try:
        start(workspace)
        until(workspace, lambda: status(workspace).get("phase") == "Empty", what="looking at the endpoint")
        ended = workspace.finetune("run", "-f", job)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        yield workspace
    finally:
        workspace.close()


def start(workspace: Workspace) -> subprocess.Popen[str]:
    """Run `finetune up`."""
    log = (workspace.folder / "up.log").open("a")
    return workspace.start("up", "-f", "endpoint.yaml", "--port", str(free_port()), stdout=log)


def stored(workspace: Workspace, kind: str, name: str) -> dict[str, Any]:
    return read_json(workspace.home.objects / kind / "default" / f"{name}.json") or {}


def status(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = stored(workspace, "modelendpoint", NAME).get("status") or {}
    return found


def until(workspace: Workspace, look: Callable[[], Any], *, what: str, seconds: float = HANGS_S) -> Any:
    """Wait, and tell all that is known when it does not come."""
    try:
        return wait_for(look, seconds=seconds, what=what)
    except TimeoutError:
        logs = "".join(
            f"== {path.name}\n{path.read_text()[-1500:]}"
            for path in workspace.home.root.glob("endpoint-logs/*/*/*compare*.log")
        )
        known = json.dumps(status(workspace), indent=1)
        raise AssertionError(f"{what}\n{known}\n{(workspace.folder / 'up.log').read_text()}\n{logs}") from None


def offer(workspace: Workspace, name: str, **evaluation: Any) -> None:
    """The first version once more, under another name: it was proven against the base model, as the first one was."""
    first = stored(workspace, "modelversion", "first")
    other = {key: copy.deepcopy(value) for key, value in first.items() if key != "status"}
    other["metadata"] = {"name": name, "namespace": "default", "labels": first["metadata"]["labels"]}
    other["spec"]["evaluation"]["plan"] |= evaluation
    LocalCluster(home=workspace.home).submit(manifest=other)


def test_a_version_is_compared_with_what_is_stable_and_then_rolled_out_or_rejected(served: Workspace) -> None:
    assert status(served)["stable"]["name"] == "first"
    report = Path(stored(served, "modelversion", "first")["spec"]["evaluation"]["report"].removeprefix("file://"))
    before = report.read_bytes()

    # As good as what is stable: it is the same model.
    offer(served, "second")
    until(served, lambda: "comparing second with first" in status(served)["message"], what="the comparison")
    until(served, lambda: status(served)["stable"]["name"] == "second", what="promotion")
    (compared,) = status(served)["comparisons"]
    assert (compared["version"]["name"], compared["baseline"]["name"]) == ("second", "first")
    assert (compared["verdict"], compared["accepted"]) == ("Pass", True)
    (row,) = compared["results"]
    assert row["candidate"] == row["baseline"] > 0.5, "both are the same model, and it has learned something"
    assert report.read_bytes() == before, "what the version was first proven by stays"
    again = Path(compared["report"].removeprefix("file://"))
    assert again.parent.parent == report.parent.parent / "comparisons"
    assert b"first" in again.read_bytes()


def test_an_interruption_costs_nothing_and_what_does_not_pass_is_rejected(served: Workspace) -> None:
    offer(served, "third", metrics=[{"name": "accuracy", "minImprovement": 0.4}])
    log = f"endpoint-logs/default/{NAME}/*compare*.log"
    known = set(served.home.root.glob(log))
    until(served, lambda: set(served.home.root.glob(log)) - known, what="the start of its process")
    up = served.processes[0]
    up.send_signal(signal.SIGINT)
    assert up.wait(timeout=HANGS_S) == 130
    assert served.pids() == [], "its process has ended with the others"
    start(served)
    until(served, lambda: status(served)["versions"][-1]["name"] == "third", what="the verdict")
    last = status(served)["versions"][-1]
    assert last["outcome"] == "Rejected"
    assert last["reason"].startswith("compared with second: ")
    assert status(served)["stable"]["name"] == "second"
    jobs = served.home.objects / "job" / "default"
    until(served, lambda: not list(jobs.glob(f"{NAME}-compare*.json")), what="the end of its Job")
    logs = set(served.home.root.glob(log)) - known
    assert len(logs) == 2, "one process before the interruption, one after it"
    assert all("-1-0-" in path.name for path in logs), "the first attempt went on"
