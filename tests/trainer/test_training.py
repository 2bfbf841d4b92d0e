"""Training as its container runs it: interrupted in every way, it ends with the weights of an unbroken run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from demo import assets
from safetensors.torch import load_file, save_file
from tests.trainer.small_run import SmallRun, kill_worker, small_model, wait_for, workers_of

pytestmark = pytest.mark.timeout(240)
LORA = {"type": "LoRA", "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "targetModules": ["all-linear"]}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    return small_model(tokenizer_folder=assets.smollm2_folder(), to=folder / "base")


@pytest.fixture(scope="module")
def prepared(base: Path) -> dict[str, Any]:
    return SmallRun(root=base.parent / "prepared", base=base).prepare()


def new_run(base: Path, prepared: dict[str, Any], name: str, **settings: Any) -> SmallRun:
    """A run of its own on the data prepared once."""
    run = SmallRun(root=base.parent / name, base=base, **settings)
    run.folder.mkdir(exist_ok=True)
    if not (run.folder / "data").exists():
        (run.folder / "data").symlink_to(base.parent / "prepared" / "run" / "data")
    return run


@pytest.fixture(scope="module")
def unbroken(base: Path, prepared: dict[str, Any]) -> SmallRun:
    """What every interrupted run must end with."""
    run = new_run(base, prepared, "unbroken")
    process = run.stage(run.order(prepared, method=LORA), "train")
    assert process.wait(timeout=120) == 0, run.log("train")
    return run


def finish(run: SmallRun, order: dict[str, Any]) -> dict[str, Any]:
    process = run.stage(order, "train")
    assert process.wait(timeout=120) == 0, run.log("train")
    return run.message("train")


def test_training_learns_and_saves_what_it_says(unbroken: SmallRun) -> None:
    result = unbroken.message("train")
    assert (result["steps"], result["artifact"]["format"]) == (14, "Adapter")
    lines = [json.loads(line) for line in (unbroken.folder / "training_log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert result["validationLoss"] < losses[0]
    assert (unbroken.folder / "model" / "COMPLETE").exists()
    assert not list((unbroken.folder / "model").glob("*.bin"))
    config = json.loads((unbroken.folder / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"].startswith("file://")
    assert unbroken.steps() == [8, 12], "the newest two, every four steps"


def test_the_same_orders_again_take_the_finished_model(unbroken: SmallRun, prepared: dict[str, Any]) -> None:
    before = (unbroken.folder / "model" / "COMPLETE").stat().st_mtime_ns
    again = finish(unbroken, unbroken.order(prepared, method=LORA))
    assert again["reused"] is True
    assert (unbroken.folder / "model" / "COMPLETE").stat().st_mtime_ns == before


def test_sigterm_saves_and_loses_no_step(unbroken: SmallRun, base: Path, prepared: dict[str, Any]) -> None:
    run = new_run(base, prepared, "sigterm")
    order = run.order(prepared, method=LORA)
    process = run.stage(order, "train")
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75, run.log("train")
    stopped = run.message("train")
    assert stopped["reason"] == "StoppedAfterCheckpoint"
    assert stopped["checkpointStep"] == run.steps()[-1]
    result = finish(run, order)
    assert result["resumedFromStep"] == stopped["checkpointStep"]
    assert run.weights() == unbroken.weights()


def test_kill_9_goes_on_from_the_newest_checkpoint(unbroken: SmallRun, base: Path, prepared: dict[str, Any]) -> None:
    run = new_run(base, prepared, "sigkill")
    order = run.order(prepared, method=LORA)
    process = run.stage(order, "train")
    wait_for(lambda: 8 in run.steps(), what="a checkpoint")
    kill_worker(process)
    assert process.wait(timeout=30) == 70
    assert run.message("train")["reason"] == "ProcessKilled"
    result = finish(run, order)
    assert result["resumedFromStep"] >= 8
    assert run.weights() == unbroken.weights()


def test_torn_checkpoints_are_named_and_passed_over(unbroken: SmallRun, base: Path, prepared: dict[str, Any]) -> None:
    run = new_run(base, prepared, "torn")
    order = run.order(prepared, method=LORA)
    process = run.stage(order, "train")
    wait_for(lambda: 12 in run.steps(), what="a checkpoint")
    kill_worker(process)
    process.wait(timeout=30)
    newest = run.folder / "checkpoints" / "step-12" / "parameters.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 0xFF
    newest.write_bytes(bytes(content))
    (run.folder / "checkpoints" / "step-13").mkdir()
    (run.folder / "checkpoints" / "step-13" / "parameters.safetensors").write_bytes(b"half")
    (run.root / "train.log").unlink()
    result = finish(run, order)
    assert result["resumedFromStep"] == 8
    assert "step-12 is not complete and is ignored: parameters.safetensors" in run.log("train")
    assert "step-13 is not complete and is ignored: it has no COMPLETE" in run.log("train")
    assert run.weights() == unbroken.weights()


def test_a_checkpoint_of_other_orders_is_not_taken(base: Path, prepared: dict[str, Any]) -> None:
    run = new_run(base, prepared, "orders", overrides={"maxSteps": 6})
    finish(run, run.order(prepared, method=LORA))
    run.overrides = {"maxSteps": 6, "seed": 4}
    result = finish(run, run.order(prepared, method=LORA))
    assert "resumedFromStep" not in result
    assert "belongs to other orders" in run.log("train")


@pytest.fixture(scope="module")
def unbroken_pair(base: Path, prepared: dict[str, Any]) -> SmallRun:
    run = new_run(base, prepared, "unbroken-pair", processes=2)
    finish(run, run.order(prepared))
    return run


def test_two_processes_learn_what_one_learns(unbroken_pair: SmallRun, base: Path, prepared: dict[str, Any]) -> None:
    # Full training without dropout: the same batches give the same sums, but for rounding.
    single = new_run(base, prepared, "single")
    one, two = finish(single, single.order(prepared)), unbroken_pair.message("train")
    assert one["tokens"] == two["tokens"]
    assert one["validationLoss"] == pytest.approx(two["validationLoss"], rel=0.02)


def test_sigterm_to_one_of_two_stops_both_at_one_step(
    unbroken_pair: SmallRun, base: Path, prepared: dict[str, Any]
) -> None:
    run = new_run(base, prepared, "pair-sigterm", processes=2)
    order = run.order(prepared)
    process = run.stage(order, "train")
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    kill_worker(process, signal.SIGTERM, which=1)
    assert process.wait(timeout=60) == 75, run.log("train")
    assert not workers_of(process)
    result = finish(run, order)
    assert result["resumedFromStep"] >= 4
    assert run.weights() == unbroken_pair.weights()


def test_kill_9_of_one_of_two_ends_both_and_resumes(
    unbroken_pair: SmallRun, base: Path, prepared: dict[str, Any]
) -> None:
    run = new_run(base, prepared, "pair-sigkill", processes=2)
    order = run.order(prepared)
    process = run.stage(order, "train")
    wait_for(lambda: 4 in run.steps(), what="a checkpoint")
    kill_worker(process, which=1)
    assert process.wait(timeout=60) == 70
    assert run.message("train")["reason"] in ("ProcessKilled", "PeerLost")
    finish(run, order)
    assert run.weights() == unbroken_pair.weights()


@pytest.fixture
def two_pods(base: Path, prepared: dict[str, Any]) -> Iterator[tuple[SmallRun, list[subprocess.Popen[bytes]]]]:
    run = new_run(base, prepared, "two-pods", nodes=2)
    (run.root / "pod-1").mkdir(exist_ok=True)
    processes = []
    for index in range(2):
        settings = {"JOB_COMPLETION_INDEX": str(index), "FINETUNE_MASTER_ADDR": "127.0.0.1"}
        settings["FINETUNE_MASTER_PORT"] = str(29500 + os.getpid() % 1000)
        processes.append(run.stage(run.order(prepared), f"pod-{index}", **settings))
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


def test_early_stopping_takes_the_best_weights(base: Path, prepared: dict[str, Any]) -> None:
    overrides = {"maxSteps": None, "epochs": 30.0, "learningRate": 0.05, "earlyStoppingPatience": 2}
    run = new_run(base, prepared, "early", overrides=overrides)
    result = finish(run, run.order(prepared))
    assert result["stoppedEarly"] is True
    lines = [json.loads(line) for line in (run.folder / "training_log.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert result["validationLoss"] == pytest.approx(min(losses))
    assert losses[-1] > min(losses)
    assert len(losses) < 30


def test_a_loss_that_is_not_finite_ends_the_run_by_name(base: Path, prepared: dict[str, Any]) -> None:
    broken = base.parent / "broken"
    if not broken.exists():
        small_model(tokenizer_folder=base, to=broken)
        tensors = load_file(broken / "model.safetensors")
        tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    run = SmallRun(root=base.parent / "not-finite", base=broken)
    process = run.stage(run.order(run.prepare()), "train")
    assert process.wait(timeout=60) == 70
    failure = run.message("train")
    assert (failure["reason"], "step 1" in failure["message"]) == ("LossNotFinite", True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named_and_earlier_checkpoints_stay(base: Path, prepared: dict[str, Any]) -> None:
    run = new_run(base, prepared, "full-disk", overrides={"maxSteps": 200})
    disk = run.folder / "checkpoints"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=56m", "tmpfs", str(disk)], check=True)
    try:
        process = run.stage(run.order(prepared, checkpoint={"everySteps": 4, "keep": 9, "resume": "Latest"}), "train")
        assert process.wait(timeout=120) == 73, run.log("train")
        failure = run.message("train")
        assert failure["reason"] == "CannotWrite"
        assert "checkpoints/step-" in failure["message"]
        kept = run.steps()
        assert kept
        assert f"checkpoints/step-{kept[-1] + 4} " in failure["message"]
        assert kept == list(range(4, kept[-1] + 4, 4)), "none of the earlier ones was given up"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_freezing_keeps_what_it_names(base: Path, prepared: dict[str, Any]) -> None:
    run = new_run(base, prepared, "frozen", overrides={"maxSteps": 2})
    freeze = {"type": "Full", "freeze": {"layers": "0", "patterns": ["embed_tokens"]}}
    finish(run, run.order(prepared, method=freeze))
    before, after = load_file(base / "model.safetensors"), load_file(run.folder / "model" / "model.safetensors")
    for name, tensor in after.items():
        frozen = ".layers.0." in name or "embed_tokens" in name
        assert torch.equal(tensor, before[name]) == frozen, name


def test_progress_tells_how_far_it_is(unbroken: SmallRun) -> None:
    status = json.loads((unbroken.root / "train.progress").read_text())["trainerStatus"]
    metrics = {metric["name"]: float(metric["value"]) for metric in status["metrics"]}
    assert status["progressPercentage"] == 100
    assert metrics["step"] == metrics["total_steps"] == 14
    assert metrics["checkpoint_step"] == 12
    assert metrics["non_padding_tokens_per_second_per_gpu"] > 0
