"""Under every strategy processes learn what one learns, save the whole model, and go on where another left off."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.pair import pair
from tests.trainer.small_run import LORA, METHODS, SmallRun, SmallRuns
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.tasks import UsedStrategy
from finetune_trainer.process.gang import joined
from finetune_trainer.store.orders import content_digest
from finetune_trainer.training.parallel.fsdp2 import FullySharded
from finetune_trainer.training.sharing import ParallelSettings, Root

STRATEGIES: tuple[UsedStrategy, ...] = ("DDP", "FSDP2", "DeepSpeedZeRO1", "DeepSpeedZeRO2", "DeepSpeedZeRO3")
PACKED = {"packing": True, "maxLength": 128}
"""Three examples to a row."""
SAME = 1e-5
"""Of a loss: sums over other parts, in another order, round otherwise."""


@pytest.fixture(scope="module")
def alone(runs: SmallRuns) -> tuple[SmallRun, dict[str, Any]]:
    """One process, undisturbed."""
    run = runs.new("alone", overrides=PACKED)
    return run, run.train(run.order(runs.prepared, checkpoint={"everySteps": 4, "keep": 5, "resume": "Latest"}))


def goes_on(run: SmallRun, order: dict[str, Any], *, at: int) -> dict[str, Any]:
    """The same run once more, as if it had ended after the checkpoint of a step."""
    shutil.rmtree(run.folder / "model", ignore_errors=True)
    for step in (step for step in run.steps() if step > at):
        shutil.rmtree(run.folder / "checkpoints" / f"step-{step}")
    result = run.train(order)
    assert result["resumedFromStep"] == at
    return result


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_learns_the_same_and_goes_on_from_its_own_and_anothers(
    strategy: str, alone: tuple[SmallRun, dict[str, Any]], runs: SmallRuns
) -> None:
    single, one = alone
    run = runs.new(f"pair-{strategy}", processes=2, overrides=PACKED)
    order = run.order(runs.prepared, strategy=strategy)
    two = run.train(order)
    assert (two["tokens"], two["totalParameters"]) == (one["tokens"], one["totalParameters"])
    assert two["validationLoss"] == pytest.approx(one["validationLoss"], rel=SAME)
    # Its own checkpoint: the same bits as without a break.
    unbroken = run.weights()
    assert goes_on(run, order, at=12)["validationLoss"] == two["validationLoss"]
    assert run.weights() == unbroken
    # One process's, under the strategy; and the strategy's, in one process.
    for folder in run.folder.glob("checkpoints/*"):
        shutil.rmtree(folder)
    shutil.copytree(single.folder / "checkpoints" / "step-8", run.folder / "checkpoints" / "step-8")
    assert goes_on(run, order, at=8)["validationLoss"] == pytest.approx(one["validationLoss"], rel=SAME)
    back = run.order(runs.prepared) | {"processesPerNode": 1}
    assert goes_on(run, back, at=12)["validationLoss"] == pytest.approx(one["validationLoss"], rel=SAME)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_adapter_is_trained_under_each_strategy(strategy: str, runs: SmallRuns) -> None:
    lora = LORA | {"lora": LORA["lora"] | {"dropout": 0.0}}
    single, pair = runs.new("adapter-alone"), runs.new(f"adapter-{strategy}", processes=2)
    one = single.train(single.order(runs.prepared, method=lora))
    two = pair.train(pair.order(runs.prepared, method=lora, strategy=strategy))
    assert two["trainableParameters"] == one["trainableParameters"]
    assert two["validationLoss"] == pytest.approx(one["validationLoss"], rel=SAME)
    assert pair.reported("train")["grad_norm"] == pytest.approx(single.reported("train")["grad_norm"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("DoRA", "DeepSpeedZeRO3"), ("IA3", "DeepSpeedZeRO3"), ("QLoRA-4", "FSDP2"), ("QLoRA-8", "DDP")],
)
def test_what_other_methods_train_beside_weights_that_are_shared_out(name: str, strategy: str, runs: SmallRuns) -> None:
    """DoRA asks for its layers' weights, and factors are in no layer of their own. Small weights are shared out too."""
    method = METHODS[name] | ({"lora": LORA["lora"] | {"dropout": 0.0}} if "lora" in METHODS[name] else {})
    settings: dict[str, Any] = {"overrides": {"maxSteps": 6}}
    single, pair = runs.new(f"{name}-alone", **settings), runs.new(f"{name}-{strategy}", processes=2, **settings)
    own = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if strategy == "DeepSpeedZeRO3" else None
    single.train(single.order(runs.prepared, method=method))
    pair.train(pair.order(runs.prepared, method=method, strategy=strategy, deepspeed=own))
    one, two = (load_file(run.folder / "model" / "adapter_model.safetensors") for run in (single, pair))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", ["FSDP2", "DeepSpeedZeRO2", "DeepSpeedZeRO3"])
def test_what_waits_in_the_hosts_memory_learns_the_same(
    strategy: str, alone: tuple[SmallRun, dict[str, Any]], runs: SmallRuns
) -> None:
    run = runs.new(f"offload-{strategy}")
    offload = {"optimizer": True, "parameters": strategy != "DeepSpeedZeRO2"}
    found = run.train(run.order(runs.prepared, strategy=strategy, offload=offload))
    assert found["validationLoss"] == pytest.approx(alone[1]["validationLoss"], rel=SAME)


def test_a_deepspeed_configuration_of_ones_own_is_in_force(
    alone: tuple[SmallRun, dict[str, Any]], runs: SmallRuns
) -> None:
    run = runs.new("own-config", processes=2)
    own = {"zero_optimization": {"reduce_bucket_size": 4322}}
    tried = SmallRun(root=run.root.with_name("own-config-tried"), base=run.base)
    tried.prepare(strategy="DeepSpeedZeRO2", deepspeed=own)
    found = run.train(run.order(runs.prepared, strategy="DeepSpeedZeRO2", deepspeed=own))
    assert found["validationLoss"] == pytest.approx(alone[1]["validationLoss"], rel=SAME)
    assert '"reduce_bucket_size": 4322' in run.log("train")
    assert (found["strategy"], found["deepspeed"]) == ("DeepSpeedZeRO2, 2 processes", content_digest(own))


def test_under_fsdp2_each_pass_leaves_a_part_of_the_gradients_only() -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    with joined(gpus=False, meets=True) as gang:
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
        parallel = FullySharded(gang, ParallelSettings())
        ask = parallel.prepare(Root(model), optimizer=partial(torch.optim.AdamW, model.parameters()))
        with parallel.accumulating(last=False):
            parallel.backward(ask(lambda inner: inner(torch.ones(1, 4, dtype=torch.int64)).logits.sum()), weight=1)
        assert all(isinstance(each.grad, DTensor) for each in model.parameters()), (
            "not whole until the step's last pass"
        )


def test_activations_that_are_computed_again_are_the_same() -> None:
    """Dropout is drawn again as it was: what is trained has the same bits."""
    same = [(method, strategy, True) for strategy in STRATEGIES for method in ("LoRA", "Full")]
    assert [text.split("SAID ")[1].strip() for text in pair("-m", "tests.trainer.computed_again")] == [str(same)] * 2
