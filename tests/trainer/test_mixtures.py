"""What LoRA adds to mixtures of experts: PEFT's own count against the arithmetic, which knows config.json alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from finetune_api.finetunejob import LoRA
from finetune_api.model_shape import ModelShape
from finetune_api.run import MethodOrder
from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.training.methods.choose import method_of, trainable_parameters

RANK = 4
SIZE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "num_experts_per_tok": 2,
}
COMPRESSED = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}
ROUTED = {"moe_intermediate_size": 48, "n_routed_experts": 8, **COMPRESSED, "num_key_value_heads": 4}
FORWARD = ["gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("name", "settings", "targets"),
    [
        ("DeepseekV2", {**ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1, "q_lora_rank": 24}, None),
        ("DeepseekV2", {**ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1, "q_lora_rank": None}, FORWARD),
        ("DeepseekV3", {**ROUTED, "first_k_dense_replace": 2, "q_lora_rank": 24, "n_group": 2, "topk_group": 1}, None),
        ("Qwen3Moe", {"moe_intermediate_size": 48, "num_experts": 8, "head_dim": 16, "mlp_only_layers": [0, 2]}, None),
        ("Qwen3Moe", {"moe_intermediate_size": 48, "num_experts": 8, "head_dim": 16}, ["q_proj", "v_proj"]),
        ("Mixtral", {"num_local_experts": 4}, None),
    ],
)
def test_the_arithmetic_counts_as_peft_does(name: str, settings: dict[str, Any], targets: list[str] | None) -> None:
    config = getattr(transformers, f"{name}Config")(**{**SIZE, **settings})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    order = MethodOrder(type="LoRA", lora=LoRA(rank=RANK, target_modules=targets or ["all-linear"]))
    shape = ModelShape.of(config.to_dict())
    assert shape.parameters == pytest.approx(sum(each.numel() for each in model.parameters()), rel=0.01)
    loaded = LoadedBase(model=model, untrained=frozenset())
    adapted = method_of(order).applied(loaded, task=task_of("CausalLM"), base_uri="file:///base")
    counted = sum(each.numel() for each in trainable_parameters(adapted).values())
    assert RANK * sum(map(sum, shape.layers_of(targets or ["all-linear"]))) == counted
