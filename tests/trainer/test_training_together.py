"""Several processes and several pods train one model: they learn what one learns, and stop as one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from tests.trainer.small_run import SmallRun, SmallRuns, kill_worker, wait_for, workers_of

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def unbroken_pair(runs: SmallRuns) -> SmallRun:
    run = runs.new("unbroken-pair", processes=2)
    run.train(run.order(runs.prepared))
    return run


def test_two_processes_learn_what_one_learns(unbroken_pair: SmallRun, runs: SmallRuns) -> None:
    # Full training without dropout: the same batches give the same sums, but for rounding.
    single = runs.new("single")
    one, two = single.train(single.order(runs.prepared)), unbroken_pair.message("train")
    assert one["tokens"] == two["tokens"]
    assert one["validationLoss"] == pytest.approx(two["validationLoss"], rel=0.02)


def test_sigterm_to_one_of_two_stops_both_at_one_step(unbroken_pair: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("pair-sigterm", processes=2)
    order = run.order(runs.prepared)
    process = run.stage(order, "train")
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    kill_worker(process, signal.SIGTERM, which=1)
    assert process.wait(timeout=60) == 75, run.log("train")
    assert not workers_of(process)
    result = run.train(order)
    assert result["resumedFromStep"] >= 4
    assert run.weights() == unbroken_pair.weights()


def test_kill_9_of_one_of_two_ends_both_and_resumes(unbroken_pair: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("pair-sigkill", processes=2)
    order = run.order(runs.prepared)
    process = run.stage(order, "train")
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    kill_worker(process, which=1)
    assert process.wait(timeout=60) == 70
    assert run.message("train")["reason"] in ("ProcessKilled", "PeerLost")
    run.train(order)
    assert run.weights() == unbroken_pair.weights()


@pytest.fixture
def two_pods(runs: SmallRuns) -> Iterator[tuple[SmallRun, list[subprocess.Popen[bytes]]]]:
    run = runs.new("two-pods", nodes=2)
    (run.root / "pod-1").mkdir(exist_ok=True)
    processes = []
    for index in range(2):
        settings = {"JOB_COMPLETION_INDEX": str(index), "FINETUNE_MASTER_ADDR": "127.0.0.1"}
        settings["FINETUNE_MASTER_PORT"] = str(29500 + os.getpid() % 1000)
        processes.append(run.stage(run.order(runs.prepared), f"pod-{index}", **settings))
    yield run, processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_two_pods_meet_and_stop_together(two_pods: tuple[SmallRun, list[subprocess.Popen[bytes]]]) -> None:
    run, processes = two_pods
    wait_for(lambda: 4 in run.steps(), what="a checkpoint", seconds=120)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=60) for process in processes] == [75, 75], run.log("pod-0") + run.log("pod-1")
    assert {run.message(f"pod-{index}")["checkpointStep"] for index in range(2)} == {run.steps()[-1]}
