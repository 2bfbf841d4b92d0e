"""`watch`: what is seen of a job or an endpoint that others work on, and how it ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.harness.waiting import wait_until
from tests.patience import HANGS_S
from tests.unit.cli.endpoints import canary
from tests.unit.cli.jobs import ended, job_with, training

from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.cli.__main__ import main
from finetune_operator.cli.view import View
from finetune_operator.core.ports import UnavailableError
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.home import LocalHome


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return LocalCluster(home=LocalHome.at(".finetune"))


def put(cluster: LocalCluster, found: FineTuneJob | ModelEndpoint) -> None:
    manifest = found.to_dict()
    manifest["metadata"] |= {"namespace": "default", "name": "router"}
    cluster.store.write(manifest)


@pytest.mark.parametrize(("phase", "status"), [("Succeeded", 0), ("Rejected", 3), ("RolledBack", 3), ("Failed", 1)])
def test_a_job_is_shown_to_its_end(
    cluster: LocalCluster,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    status: int,
) -> None:
    put(cluster, training())
    shown = View.show

    def show(self: View[object], seen: object) -> None:
        shown(self, seen)
        put(cluster, ended(phase=phase))

    monkeypatch.setattr(View, "show", show)
    assert main(["watch", "job", "router", "--local"]) == status
    out = capsys.readouterr().out
    assert "Train: attempt 2" in out
    assert f"router: {phase} after 1 min 50 s" in out
    assert "Version: router" in out


def test_ctrl_c_ends_the_view_and_nothing_else(cluster: LocalCluster) -> None:
    put(cluster, training())
    before = cluster.store.read(kind="FineTuneJob", namespace="default", name="router")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "finetune_operator.cli", "watch", "job", "router", "--local"]
    process = subprocess.Popen(command, stdout=theirs)
    os.close(theirs)
    seen = b""

    def draws() -> bool:
        nonlocal seen
        seen += os.read(ours, 4096)
        return b"Train (2)" in seen

    wait_until(draws, what="the live view", timeout_s=HANGS_S)
    assert b"Ctrl-C only ends the view." in seen
    process.send_signal(signal.SIGINT)
    assert process.wait(HANGS_S) == 130
    os.close(ours)
    assert cluster.store.read(kind="FineTuneJob", namespace="default", name="router") == before


def test_a_wait_in_a_terminal_shows_how_far_it_is(cluster: LocalCluster) -> None:
    put(cluster, canary())
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "finetune_operator.cli", "approve", "router", "--local", "--wait"]
    process = subprocess.Popen([*command, "--timeout", "0.1"], stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    _, said = process.communicate(timeout=HANGS_S)
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert process.returncode == 1
    assert "router was not so far within 0.1 s; the request stays" in said
    assert "samples" in seen
    assert "Ctrl-C only ends the view." in seen


def test_an_apiserver_that_is_away_for_a_while_is_outlived(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cluster, ended())
    read, answers = LocalCluster.get, iter([True, False, False, True])

    async def get(self: LocalCluster, **which: object) -> object:
        if not next(answers):
            raise UnavailableError("the cluster does not answer")
        return await read(self, **which)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalCluster, "get", get)
    assert main(["watch", "job", "router", "--local"]) == 0
    assert capsys.readouterr().out.count("warning: the cluster does not answer") == 1


def test_one_that_is_deleted_meanwhile(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cluster, canary())
    read, answers = LocalCluster.get, iter([True, True, False])

    async def get(self: LocalCluster, **which: object) -> object:
        return await read(self, **which) if next(answers) else None  # type: ignore[arg-type]

    monkeypatch.setattr(LocalCluster, "get", get)
    assert main(["watch", "endpoint", "router", "--local"]) == 1
    said = capsys.readouterr()
    assert said.err == "error: router was deleted\n"
    assert "router: Canary: " in said.out


@pytest.mark.parametrize(
    ("what", "words"),
    [(["job", "no"], "FineTuneJob no was not found"), (["version", "v"], "a version does not change")],
)
def test_what_cannot_be_watched(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str], what: list[str], words: str
) -> None:
    put(cluster, job_with({}))
    assert main(["watch", *what, "--local"]) == 2
    assert words in capsys.readouterr().err
