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
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("llama", ["q_proj", "v_prj"], "v_prj is no layer of the base model; did you mean v_proj?"),
        ("qwen2", ["q_proj", "lm_head"], "lm_head has its weights in common with model.embed_tokens"),
        ("qwen2", ["embed_tokens"], "model.embed_tokens has its weights in common with lm_head"),
    ],
)
def test_layers_that_cannot_be_adapted_as_they_are_named(
    name: str, targets: list[str], message: str, tmp_path: Path
) -> None:
    """PEFT passes over a name as long as another one is a layer's, and merges into both owners of a weight."""
    base = tiny_models.make(name, to=tmp_path / name)
    with pytest.raises(StageError, match=re.escape(f"method.lora.targetModules: {message}")) as refused:
        applied(low_rank(2, *targets), base)
    assert refused.value.reason == "NoSuchModule"


def test_dora_does_not_divide_by_the_length_of_nothing(tmp_path: Path) -> None:
    """Qwen 3.6 has such rows."""
    base = tiny_models.make("llama", to=tmp_path / "llama")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][5] = 0.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"model\.layers\.1\.self_attn\.o_proj .*targetModules") as refused:
        applied(low_rank(2) | {"type": "DoRA"}, base)
    assert refused.value.reason == "UnsupportedMethod"


def frozen(base: Path, **order: Any) -> set[str]:
    model = applied({"type": "Full", "freeze": order}, base)
    return {name for name, each in model.named_parameters(remove_duplicate=False) if not each.requires_grad}


def test_what_is_frozen_has_all_of_its_names(tmp_path: Path) -> None:
    qwen2 = tiny_models.make("qwen2", to=tmp_path / "qwen2")
    assert frozen(qwen2, patterns=["lm_head"]) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert all(".layers.1." in name for name in frozen(qwen2, layers="1-1"))


@pytest.mark.parametrize("layers", ["1-0", "0-9999999999", "0,7"])
def test_blocks_that_are_not_there_are_named_as_they_were_written(layers: str, llama: Path) -> None:
    with pytest.raises(StageError, match=f"no layer or parameter {layers.rpartition(',')[2]}$"):
        frozen(llama, layers=layers)


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
