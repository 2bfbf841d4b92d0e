"""Each method but LoRA and Full (test_training.py): it learns, is saved and verified, and goes on bit for bit; what it
cannot do with a base is refused.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import tiny_models
from tests.trainer.small_run import METHODS, SmallRuns
from torch import nn

from finetune_api.run import MethodOrder
from finetune_trainer.models import base_model, quantisation
from finetune_trainer.process.errors import StageError
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.training.methods.choose import method_of


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_and_goes_on_where_it_was(name: str, runs: SmallRuns) -> None:
    run = runs.new(f"method-{name}", overrides={"learningRate": 0.05})
    order = run.order(runs.prepared, method=METHODS[name])
    result = run.train(order)
    log = [json.loads(line) for line in (run.folder / "training_log.jsonl").read_text().strip().split("\n")]
    losses = [line["validation_loss"] for line in log if "validation_loss" in line]
    assert losses[-1] < losses[0]
    assert result["artifact"]["format"] == "Adapter"
    assert ("bitsandbytes" in result["packages"]) == name.startswith("QLoRA")
    unbroken = run.weights()
    shutil.rmtree(run.folder / "model")
    shutil.rmtree(run.folder / "checkpoints" / "step-12")
    assert run.train(order)["resumedFromStep"] == 8
    assert run.weights() == unbroken


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its layers are 32 x 32, 32 x 16 and 32 x 48."""
    return tiny_models.make("llama", to=tmp_path_factory.mktemp("methods") / "llama")


def applied(method: Mapping[str, Any], folder: Path) -> Any:
    order = MethodOrder.model_validate(method)
    chosen = method_of(order)
    base = base_model.load_base(folder, task="Chat", dtype="float32", bits=chosen.bits)
    return chosen.applied(base, task=task_of("Chat"), base_uri="hf://org/name")


def low_rank(rank: int, *targets: str) -> dict[str, Any]:
    return {"type": "LoRA", "lora": {"rank": rank, "targetModules": list(targets) or None}}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            low_rank(17, "q_proj", "k_proj"),
            "17 is more than the layer model.layers.0.self_attn.k_proj (32 x 16) has room for; set it to 16 or less, or"
            " leave that layer out",
        ),
        (
            low_rank(33),
            "33 is more than the layer model.layers.0.self_attn.k_proj (32 x 16) has room for; set it to 32 or less",
        ),
    ],
    ids=["of a layer that was named", "of all layers"],
)
def test_a_rank_that_layers_have_no_room_for_is_refused(method: dict[str, Any], message: str, llama: Path) -> None:
    with pytest.raises(StageError, match=re.escape(f"method.lora.rank: {message}")) as refused:
        applied(method, llama)
    assert refused.value.reason == "RankTooLarge"


def test_a_small_layer_that_nobody_named_is_told_of(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        applied(low_rank(17), llama)
    assert "self_attn.k_proj (32 x 16)" in caplog.text


def test_a_base_without_linear_layers_cannot_be_quantised() -> None:
    with pytest.raises(StageError, match=re.escape("method.type: QLoRA: the base model has no linear layers")):
        quantisation.check(nn.Sequential(nn.Embedding(4, 4), nn.LayerNorm(4)))


def test_ia3_without_layers_that_peft_knows_is_refused(tmp_path: Path) -> None:
    phi3 = tiny_models.make("phi3", to=tmp_path / "phi3")
    with pytest.raises(StageError, match=r"method\.type: IA3 does not know the layers .* of type phi3"):
        applied({"type": "IA3"}, phi3)


def test_what_was_asked_without_gradients_still_has_them(llama: Path) -> None:
    """As validation is. On processors that compute in bf16 bitsandbytes would go over to that for good."""
    model = applied(METHODS["QLoRA-4"], llama)
    ids = torch.arange(4, 24)[None]

    def gradient() -> torch.Tensor:
        torch.manual_seed(0)
        model.train().zero_grad()
        model(input_ids=ids).logits.sum().backward()
        (first,) = (each for name, each in model.named_parameters() if "layers.0.self_attn.q_proj.lora_B" in name)
        assert first.grad is not None
        return first.grad.clone()

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert torch.equal(gradient(), before)


def test_adapters_bring_neither_a_compiler_nor_noise() -> None:
    code = (
        "import sys; from finetune_trainer.models import adapter_library;"
        " print({'bitsandbytes', 'torch._inductor.compile_fx', 'kernels'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.stdout.strip(), "bitsandbytes" in found.stderr, "kernels" in found.stderr) == (
        "{'bitsandbytes'}",
        False,
        False,
    ), found.stderr
