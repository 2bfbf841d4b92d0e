"""`finetune run` through every interruption. One job, prepared once, is stopped and taken up again by each test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.forking import forked_python
from tests.local.conftest import Workspace
from tests.local.eventually import wait_for
from tests.patience import HANGS_S

pytestmark = pytest.mark.timeout(1200)
RUN = ("run", "-f", "job.yaml")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with a job that would train for hours, stopped after some steps."""
    workspace = Workspace(folder=tmp_path_factory.mktemp("training"))
    workspace.write_data()
    workspace.write_job(
        training={"maxSteps": 100_000, "maxLength": 32, "globalBatchSize": 8}, checkpoint={"everySteps": 100_000}
    )
    workspace.python = forked_python()
    try:
        with running(workspace):
            wait_for(lambda: workspace.progress().get("step", 0) >= 2, what="training")
        workspace.python = sys.executable  # for what is killed
        yield workspace
    finally:
        workspace.close()


@contextmanager
def running(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """`finetune run`, stopped by Ctrl-C at the end."""
    process = workspace.start(*RUN)
    try:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=HANGS_S)
            assert process.returncode == 130
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def trains(workspace: Workspace) -> dict[str, float]:
    """The report of training that goes on now, and has got further than where it began; empty before that."""
    if not workspace.pids():
        return {}
    metrics = workspace.progress()
    return metrics if metrics.get("step", 0) > metrics.get("resumed_from_step", 0) else {}


def test_ctrl_c_stops_after_a_checkpoint_and_the_same_command_goes_on(training: Workspace) -> None:
    process = training.start(*RUN)
    reached = wait_for(lambda: trains(training), what="training")["step"]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=HANGS_S)
    assert process.returncode == 130
    status = training.status()
    assert status["phase"] == "Suspended"
    step = status["checkpoint"]["step"]
    assert step >= reached, "checkpoint.everySteps is far away: this one was made because of the signal"
    assert f"job is stopped at step {step}. It goes on with: finetune run -f job.yaml" in out
    assert training.pids() == []

    with running(training):
        resumed = wait_for(lambda: trains(training), what="training from the checkpoint")
        assert resumed["resumed_from_step"] == step
    assert "restarts" not in training.status(), "being stopped is no failure"


def test_a_second_ctrl_c_does_not_wait(training: Workspace) -> None:
    process = training.start(*RUN)
    wait_for(lambda: trains(training), what="training")
    for pid in training.pids():
        os.kill(pid, signal.SIGSTOP)  # what does not answer to SIGTERM
    process.send_signal(signal.SIGINT)
    wait_for(lambda: training.job()["spec"].get("suspend"), what="the wish to stop")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=HANGS_S)
    assert process.returncode == 130
    assert "stopping now" in out
    assert training.pids() == []


def test_a_killed_trainer_goes_on_from_its_checkpoint(training: Workspace) -> None:
    failures = (training.status().get("restarts") or {}).get("failures", 0)
    with running(training):
        first = wait_for(lambda: trains(training), what="training")
        worker = training.pids()[-1]  # the last in the line of processes is the one that trains
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: (training.status().get("restarts") or {}).get("failures") == failures + 1, what="the failure")
        second = wait_for(lambda: trains(training), what="a second attempt")
        assert worker not in training.pids()
        assert second["resumed_from_step"] == first["resumed_from_step"], "the newest checkpoint is the same"
    last = training.status()["restarts"]["last"]
    assert "a training process was killed by signal 9" in last["message"]


def test_a_killed_finetune_leaves_nothing_behind_and_the_same_command_goes_on(training: Workspace) -> None:
    process = training.start(*RUN)
    reached = wait_for(lambda: trains(training), what="training")["step"]
    before = training.status()
    process.kill()
    process.communicate()
    wait_for(lambda: not training.shims(), what="the end of all processes")
    with running(training):
        resumed = wait_for(lambda: trains(training), what="training from the checkpoint")
        assert resumed["resumed_from_step"] >= reached, "training has saved before it ended"
        after = training.status()
    assert after["attempt"] == before["attempt"] + 1
    restarts = [(each.get("restarts") or {}).get("failures", 0) for each in (before, after)]
    assert restarts[0] == restarts[1], "being killed is no failure of the job"


def test_a_closed_terminal_stops_after_a_checkpoint(training: Workspace) -> None:
    process = training.start(*RUN)
    wait_for(lambda: trains(training), what="training")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=HANGS_S)
    assert process.returncode == 130
    assert training.status()["phase"] == "Suspended"
    assert training.pids() == []


def test_one_folder_one_process(training: Workspace) -> None:
    with running(training) as process:
        wait_for(lambda: trains(training), what="training")
        other = training.finetune("run", "-f", training.write_job("other"))
        assert other.returncode == 2
        assert f".finetune is in use by process {process.pid} (finetune run -f" in other.stderr
        follower = training.start(*RUN)
        assert follower.stderr is not None
        wait_for(lambda: "It runs job; following." in follower.stderr.readline(), what="following")
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=HANGS_S)
        assert process.poll() is None, "who only watches stops nothing"
        assert training.pids()


def test_nothing_is_left_behind(training: Workspace) -> None:
    assert training.pids() == []
    shims = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(training.folder) in _text(path)]
    assert shims == []


def _text(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
