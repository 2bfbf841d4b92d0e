"""Training as its container runs it: interrupted in every way, it ends with the weights of an unbroken run."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
from tests.patience import HANGS_S
from tests.trainer.small_run import LORA, SmallRun, SmallRuns, kill_worker, wait_for


@pytest.fixture(scope="module")
def unbroken(runs: SmallRuns) -> SmallRun:
    """What every interrupted run must end with."""
    run = runs.new("unbroken")
    run.train(run.order(runs.prepared, method=LORA))
    return run


def test_training_learns_and_saves_what_it_says(unbroken: SmallRun) -> None:
    result = unbroken.message("train")
    assert (result["steps"], result["artifact"]["format"]) == (14, "Adapter")
    lines = [json.loads(line) for line in (unbroken.folder / "training_log.jsonl").read_text().rstrip("\n").split("\n")]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert result["validationLoss"] < losses[0]
    assert (unbroken.folder / "model" / "COMPLETE").exists()
    assert not list((unbroken.folder / "model").glob("*.bin"))
    config = json.loads((unbroken.folder / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"].startswith("file://")
    assert unbroken.steps() == [8, 12], "the newest two, every four steps"


def test_progress_tells_how_far_it_is(unbroken: SmallRun) -> None:
    status = json.loads((unbroken.root / "train.progress").read_text())["trainerStatus"]
    metrics = unbroken.reported("train")
    assert status["progressPercentage"] == 100
    assert metrics["grad_norm"] > 0
    assert metrics["step"] == metrics["total_steps"] == 14
    assert metrics["checkpoint_step"] == 12
    assert metrics["non_padding_tokens_per_second_per_gpu"] > 0


def test_the_same_orders_again_take_the_finished_model(unbroken: SmallRun, runs: SmallRuns) -> None:
    before = (unbroken.folder / "model" / "COMPLETE").stat().st_mtime_ns
    again = unbroken.train(unbroken.order(runs.prepared, method=LORA))
    assert again["reused"] is True
    assert (unbroken.folder / "model" / "COMPLETE").stat().st_mtime_ns == before


def test_tokens_of_prepare_are_taken_and_give_the_same_weights(unbroken: SmallRun, runs: SmallRuns) -> None:
    # `unbroken` makes its own, as after a Prepare of an earlier version: its folder has the snapshot alone.
    assert not (unbroken.folder / "tokens").exists()
    run = runs.new("tokens")
    shutil.copytree(runs.prepared_run.folder / "tokens", run.folder / "tokens")
    (run.folder / "data").unlink()
    (run.folder / "data").mkdir()  # with what the probes are made of: nothing else is read
    shutil.copy(runs.prepared_run.folder / "data" / "test.jsonl", run.folder / "data")
    run.train(run.order(runs.prepared, method=LORA))
    assert run.weights() == unbroken.weights()


def test_sigterm_saves_and_loses_no_step(unbroken: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("sigterm")
    order = run.order(runs.prepared, method=LORA)
    process = run.stage(order, "train")
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANGS_S) == 75, run.log("train")
    stopped = run.message("train")
    assert stopped["reason"] == "StoppedAfterCheckpoint"
    assert stopped["checkpointStep"] == run.steps()[-1]
    result = run.train(order)
    assert result["resumedFromStep"] == stopped["checkpointStep"]
    assert run.weights() == unbroken.weights()


def test_kill_9_goes_on_from_the_newest_checkpoint(unbroken: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("sigkill")
    order = run.order(runs.prepared, method=LORA)
    process = run.stage(order, "train")
    wait_for(lambda: 8 in run.steps(), what="a checkpoint")
    kill_worker(process)
    assert process.wait(timeout=HANGS_S) == 70
    assert run.message("train")["reason"] == "ProcessKilled"
    result = run.train(order)
    assert result["resumedFromStep"] >= 8
    assert run.weights() == unbroken.weights()


def test_torn_checkpoints_are_named_and_passed_over(unbroken: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("torn")
    shutil.copytree(unbroken.folder / "checkpoints", run.folder / "checkpoints")
    newest = run.folder / "checkpoints" / "step-12" / "parameters.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 0xFF
    newest.write_bytes(bytes(content))
    (run.folder / "checkpoints" / "step-13").mkdir()
    (run.folder / "checkpoints" / "step-13" / "parameters.safetensors").write_bytes(b"half")
    result = run.train(run.order(runs.prepared, method=LORA))
    assert result["resumedFromStep"] == 8
    assert "step-12 is not complete and is ignored: parameters.safetensors" in run.log("train")
    assert "step-13 is not complete and is ignored: it has no COMPLETE" in run.log("train")
    assert run.weights() == unbroken.weights()
