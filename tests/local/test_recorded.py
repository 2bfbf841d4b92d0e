"""What an earlier version of this software has stored goes on under this one: tests/data/recorded."""

from __future__ import annotations

import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.local.conftest import ROOT, Workspace
from tests.local.eventually import wait_for
from tests.patience import HANGS_S

from finetune_operator.local.files import read_json
from finetune_operator.local.services import free_port

pytestmark = pytest.mark.timeout(900)
RECORDED_AT = "/tmp/recorded"


def unpack(folder: Path) -> None:
    """The recorded folder, as if it had been made in this one."""
    with tarfile.open(ROOT / "tests" / "data" / "recorded" / "first_objects.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    for path in (folder / ".finetune" / "objects").rglob("*.json"):
        text = path.read_text()
        if RECORDED_AT in text:
            path.write_text(text.replace(RECORDED_AT, str(folder)))


def test_a_job_and_an_endpoint_of_an_earlier_version_go_on(workspace: Workspace) -> None:
    unpack(workspace.folder)

    def stored(kind: str, name: str) -> dict[str, Any]:
        return read_json(workspace.home.objects / kind / "default" / f"{name}.json") or {}

    def endpoint() -> dict[str, Any]:
        found: dict[str, Any] = stored("modelendpoint", "assistant")["status"]
        return found

    log = workspace.folder / "up.log"
    with log.open("w") as out:
        up = workspace.start("up", "-f", "endpoint.yaml", "--port", str(free_port()), stdout=out)
    assert endpoint()["stable"]["name"] == "chat-1"
    lock = workspace.home.root / "lock"
    wait_for(lambda: lock.exists() and str(up.pid) in lock.read_text(), what="finetune up to work here")
    follower = workspace.start("run", "-f", "job.yaml")
    wait_for(lambda: workspace.progress().get("resumed_from_step") == 28, what="going on from the checkpoint")
    wait_for(lambda: endpoint()["phase"] == "AwaitingApproval", what="the end of the canary")
    assert workspace.status("chat-2")["evaluation"]["verdict"] == "Pass"
    approved = workspace.finetune("approve", "assistant", "--local")
    assert approved.returncode == 0, approved.stderr
    wait_for(lambda: endpoint()["phase"] == "Guarding", what="promotion")
    assert endpoint()["stable"]["name"] == "chat-2"
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=HANGS_S)
    up.send_signal(signal.SIGINT)
    assert up.wait(timeout=HANGS_S) == 130, log.read_text()
