"""What the orders of a training run ask for, and how one ends that cannot do it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.forking import forked_python
from tests.patience import HANGS_S
from tests.trainer.small_run import LORA, SmallRun, SmallRuns, small_model

from finetune_api.run import PrepareRun, TrainRun
from finetune_trainer.preparation.prepare import prepare
from finetune_trainer.process.errors import StageError
from finetune_trainer.tasks.tokens import Tokens, check_validation


def test_freezing_keeps_what_it_names(runs: SmallRuns) -> None:
    run = runs.new("frozen", overrides={"maxSteps": 2})
    freeze = {"type": "Full", "freeze": {"layers": "0", "patterns": ["embed_tokens"]}}
    run.train(run.order(runs.prepared, method=freeze))
    before, after = load_file(runs.base / "model.safetensors"), load_file(run.folder / "model" / "model.safetensors")
    for name, tensor in after.items():
        frozen = ".layers.0." in name or "embed_tokens" in name
        assert torch.equal(tensor, before[name]) == frozen, name


STOPS_EARLY = {"maxSteps": None, "epochs": 30.0, "learningRate": 0.05, "earlyStoppingPatience": 2}


@pytest.fixture(scope="module")
def stopped_early(runs: SmallRuns) -> SmallRun:
    """A run that has found its best weights, and ended."""
    run = runs.new("early", overrides=STOPS_EARLY)
    run.train(run.order(runs.prepared))
    return run


def test_early_stopping_takes_the_best_weights(stopped_early: SmallRun) -> None:
    run, result = stopped_early, stopped_early.message("train")
    assert result["stoppedEarly"] is True
    lines = [json.loads(line) for line in (run.folder / "training_log.jsonl").read_text().rstrip("\n").split("\n")]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert result["validationLoss"] == pytest.approx(min(losses))
    assert losses[-1] > min(losses)
    assert len(losses) < 30


@pytest.mark.parametrize(("counts", "stops"), [([], False), ([0, 0], False), ([0, 3], True)])
def test_early_stopping_needs_something_to_look_at(runs: SmallRuns, counts: list[int], stops: bool) -> None:
    run = TrainRun.model_validate(runs.new("nothing", overrides=STOPS_EARLY).order(runs.prepared))
    validation = Tokens(
        ids=np.zeros(4 * len(counts), dtype=np.int32),
        targets=np.zeros(4 * len(counts), dtype=np.bool_),
        starts=np.arange(len(counts) + 1, dtype=np.int64) * 4,
        labels=np.full(len(counts), -1),
        target_counts=np.array(counts, dtype=np.int32),
    )
    with nullcontext() if stops else pytest.raises(StageError, match="earlyStopping: patience 2") as refused:
        check_validation(run.optimisation, validation)
    assert stops or (refused.value.reason, refused.value.exit_code) == ("NothingToValidate", 78)


def test_prepare_refuses_early_stopping_by_nothing(runs: SmallRuns) -> None:
    """Before any accelerator is taken; the second attempt as well, which finds the tokens of the first."""
    run = runs.new("nothing-prepared", overrides=STOPS_EARLY)
    (run.folder / "data").unlink()
    split = {"fractions": {"train": 0.8, "validation": 0.0, "test": 0.2, "strategy": "GroupHash"}, "salt": "tests"}
    orders = run.prepare_order() | {"split": split, "optimisation": run.order(runs.prepared)["optimisation"]}
    for _ in range(2):
        with pytest.raises(StageError, match="earlyStopping: patience 2") as refused:
            prepare(PrepareRun.model_validate(orders))
        assert (refused.value.reason, refused.value.exit_code) == ("NothingToValidate", 78)


def test_a_best_that_storage_lost_is_trained_again(stopped_early: SmallRun, runs: SmallRuns) -> None:
    run = runs.new("lost-best", overrides=STOPS_EARLY)
    shutil.copytree(stopped_early.folder / "checkpoints", run.folder / "checkpoints")
    newest = run.steps()[-1]
    best = json.loads((run.folder / "checkpoints" / f"step-{newest}" / "state.json").read_text())["best_step"]
    for lost in ("best", f"step-{best}"):
        shutil.rmtree(run.folder / "checkpoints" / lost, ignore_errors=True)
    run.train(run.order(runs.prepared))
    assert run.weights() == stopped_early.weights()
    assert f"step-{newest} is ignored: its best validation, step-{best}, is lost" in run.log("train")


def test_a_checkpoint_of_other_orders_is_not_taken(runs: SmallRuns) -> None:
    run = runs.new("orders", overrides={"maxSteps": 6})
    run.train(run.order(runs.prepared, method=LORA))
    run.overrides = {"maxSteps": 6, "seed": 4}
    result = run.train(run.order(runs.prepared, method=LORA))
    assert "resumedFromStep" not in result
    assert "belongs to other orders" in run.log("train")


def test_a_loss_that_is_not_finite_ends_the_run_by_name(runs: SmallRuns) -> None:
    run = runs.new("not-finite", overrides={"learningRate": 1e30, "maxGradNorm": 1e30})
    process = run.stage(run.order(runs.prepared, maxRollBacks=2), "train", python=forked_python())
    assert process.wait(timeout=HANGS_S) == 70
    failure = run.message("train")
    assert (failure["reason"], "at step " in failure["message"]) == ("LossNotFinite", True)
    assert failure["message"].endswith("; training had gone back to steps 0, 0 already")


def test_a_base_with_numbers_that_are_none_is_refused_before_the_first_step(runs: SmallRuns) -> None:
    broken = runs.base.parent / "broken"
    small_model(to=broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    run = SmallRun(root=runs.base.parent / "not-a-number", base=broken)
    process = run.stage(run.order(run.prepare()), "train", python=forked_python())
    assert process.wait(timeout=HANGS_S) == 78
    failure = run.message("train")
    assert (failure["reason"], "not finite" in failure["message"]) == ("UnsupportedModel", True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named_and_earlier_checkpoints_stay(runs: SmallRuns) -> None:
    run = runs.new("full-disk", overrides={"maxSteps": 200})
    disk = run.folder / "checkpoints"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=56m", "tmpfs", str(disk)], check=True)
    try:
        checkpoint = {"everySteps": 4, "keep": 9, "resume": "Latest"}
        process = run.stage(run.order(runs.prepared, checkpoint=checkpoint), "train", python=forked_python())
        assert process.wait(timeout=HANGS_S) == 73, run.log("train")
        failure = run.message("train")
        assert failure["reason"] == "CannotWrite"
        assert "checkpoints/step-" in failure["message"]
        kept = run.steps()
        assert kept
        assert f"checkpoints/step-{kept[-1] + 4} " in failure["message"]
        assert kept == list(range(4, kept[-1] + 4, 4)), "none of the earlier ones was given up"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
