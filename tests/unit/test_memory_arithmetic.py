"""Memory by hand: an 8 B Llama, whose numbers are published."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from tests.conformance.objects import LLAMA_8B

from finetune_api.accelerators import peak_of
from finetune_api.memory import GIB, Memory, Training, choose, gpus_to_evaluate, memory_of, problem, ways_out
from finetune_api.model_shape import ModelShape, shapes_in
from finetune_api.run import MemoryOrder, MethodOrder, OffloadOrder
from finetune_api.tasks import UsedStrategy

EMBEDDING = 128256 * 4096
BLOCK = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
PARAMETERS = 2 * EMBEDDING + 32 * BLOCK
LORA = MethodOrder.model_validate({"type": "LoRA", "lora": {"rank": 16}})


def training(*, method: MethodOrder | None = None, tokens: int = 1, **machines: Any) -> Training:
    order = {"strategy": "Auto", "nodes": 1, "processes_per_node": 1, "gpus": True, "rows": 1, "precision": "Auto"}
    return Training(
        shape=ModelShape.of(LLAMA_8B),
        method=method or MethodOrder(type="Full"),
        order=MemoryOrder.model_validate({**order, **machines}),
        tokens=tokens,
    )


def test_the_shape_of_a_model() -> None:
    shape = ModelShape.of(LLAMA_8B)
    assert shape.parameters == PARAMETERS == pytest.approx(8.03e9, rel=1e-3)
    assert (shape.outside, shape.largest, shape.looked_up) == (2 * EMBEDDING, EMBEDDING, EMBEDDING)
    assert (shape.attention_width, shape.inner_width, shape.counted) == (4096, 14336, False)
    assert training(method=LORA).trained == 41_943_040, "the published number for rank 16"
    only = MethodOrder.model_validate({"type": "LoRA", "lora": {"rank": 16, "targetModules": ["q_proj", "v_proj"]}})
    assert training(method=only).trained == 32 * 16 * (4096 + 4096 + 4096 + 1024)
    # facts: LoRA 33.2 GFLOP a token at 2048 tokens, of which 12 x 32 x 4096 x 2048 are attention's
    assert shape.flops_per_token(trained=41_943_040) == pytest.approx(33.2e9 - 3.2e9, rel=0.01)


def test_weights_are_counted_in_the_headers_of_their_files() -> None:
    tensors = {
        "embed.weight": [100, 8],
        "h.0.attn.weight": [8, 24],
        "h.0.attn.bias": [1, 1, 64, 64],
        "lm_head.weight": [100, 8],
    }
    header = json.dumps({name: {"shape": shape} for name, shape in tensors.items()} | {"__metadata__": {}}).encode()
    found = shapes_in(io.BytesIO(struct.pack("<Q", len(header)) + header + b"weights are not read"))
    config = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 100, "tie_word_embeddings": True}
    shape = ModelShape.of(config, found)
    assert (shape.parameters, shape.counted) == (800 + 192, True), "no mask, and what is tied once"
    texts = (b"[1]", b'{"a":{"shape":["x"]}}')
    for text in (b"", b"version https://git-lfs", *(struct.pack("<Q", len(each)) + each for each in texts)):
        with pytest.raises(ValueError, match=r"safetensors|invalid literal"):
            shapes_in(io.BytesIO(text))
    assert ModelShape.of({name: value for name, value in config.items() if name[0] != "t"}, found) == shape, "as it is"
    odd: Any
    for odd in ([1], {"text_config": 3}):
        with pytest.raises(ValueError, match="something else"):
            ModelShape.of(odd)
    with pytest.raises(ValueError, match="no hidden_size"):
        ModelShape.of({"model_type": "odd"})


def test_experts_that_a_token_does_not_ask_take_no_activations() -> None:
    mixtral = {**LLAMA_8B, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
    shape = ModelShape.of(mixtral)
    assert shape.parameters == pytest.approx(46.7e9, rel=0.01)
    assert shape.quantisable == 32 * 2 * 4096 * (4096 + 1024), "QLoRA leaves experts as they are"
    assert shape.inner_width == 2 * 14336


T5_XXL = {
    "model_type": "t5", "is_encoder_decoder": True, "feed_forward_proj": "gated-gelu", "vocab_size": 32128,
    "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 64, "d_model": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
BART_LARGE = {
    "model_type": "bart", "is_encoder_decoder": True, "vocab_size": 50265, "d_model": 1024, "encoder_layers": 12,
    "decoder_layers": 12, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(("config", "published"), [(T5_XXL, 11.14e9), (BART_LARGE, 0.406e9)])
def test_a_model_of_two_parts_has_both(config: dict[str, Any], published: float) -> None:
    shape = ModelShape.of(config)
    assert shape.parameters == pytest.approx(published, rel=0.01)
    assert (shape.layers, shape.attention_width) == (2 * (config.get("num_layers") or 12), 1.5 * shape.width)
    assert shape.inner_width == pytest.approx(config.get("d_ff") or 2 / 3 * 4096)


P = float(PARAMETERS)
TURN = 2.0 * EMBEDDING + 2 * BLOCK
BUCKET = 500e6


@pytest.mark.parametrize(
    ("strategy", "precision", "offload", "weights", "gradients", "moments"),
    [
        # 16 bytes a parameter (4 + 4 + 8), under BF16 two more; a gradient of the largest tensor on its way
        ("DDP", "FP32", None, 4 * P, 4 * P + 4.0 * EMBEDDING, 8 * P),
        ("DDP", "BF16", None, 6 * P, 4 * P + 4.0 * EMBEDDING, 8 * P),
        ("FSDP2", "FP32", None, P / 2 + 4 * TURN, P / 2 + 4 * TURN, P),
        ("FSDP2", "BF16", None, P / 2 + 2 * TURN, P / 2 + 4 * TURN, P),
        ("FSDP2", "BF16", OffloadOrder(optimizer=True, parameters=True), 2 * TURN, 4 * TURN, 0),
        ("DeepSpeedZeRO1", "BF16", None, 6 * P, 4 * P + 4 * BUCKET, P + P / 2),
        ("DeepSpeedZeRO2", "BF16", None, 6 * P, P / 2 + 4 * BUCKET, P + P / 2),
        ("DeepSpeedZeRO2", "BF16", OffloadOrder(optimizer=True), 6 * P, P / 2 + 4 * BUCKET, 0),
        ("DeepSpeedZeRO3", "BF16", None, P / 2 + 2 * 2 * BUCKET, P / 2 + 4 * BUCKET, P + P / 2),
    ],
)
def test_full_training_on_eight_gpus(
    strategy: UsedStrategy,
    precision: str,
    offload: OffloadOrder | None,
    weights: float,
    gradients: float,
    moments: float,
) -> None:
    found = memory_of(training(processes_per_node=8, precision=precision), strategy, offload=offload)
    assert (found.weights, found.gradients, found.moments) == pytest.approx((weights, gradients, moments))
    waits = 0.0
    if offload is not None:
        waits = 16 * P if offload.parameters else 12 * P
    read = 4 * P if strategy in ("FSDP2", "DeepSpeedZeRO3") else 8 * 4 * P
    assert found.host == pytest.approx(max(waits, read)), "what its eight processes have moved there, or read"


def test_an_adapters_base_is_in_half_precision_but_under_zero() -> None:
    adapter = training(method=LORA)
    assert memory_of(adapter, "DDP").weights == 2 * P + (4 + 2) * 41_943_040
    assert memory_of(adapter, "DDP").moments == 8 * 41_943_040
    assert memory_of(adapter, "DeepSpeedZeRO2").weights == 4 * P + 2 * P + (4 + 2) * 41_943_040


def test_a_quantised_base_is_what_its_bits_are() -> None:
    four, eight = (
        MethodOrder.model_validate({"type": "QLoRA", "lora": {"rank": 16}, "quantisation": {"bits": bits}})
        for bits in (4, 8)
    )
    outside, adapter = 2 * 2 * EMBEDDING, (4 + 2) * 41_943_040
    assert memory_of(training(method=four), "DDP").weights == pytest.approx(0.516 * 32 * BLOCK + outside + adapter)
    assert memory_of(training(method=eight), "DDP").weights == pytest.approx(32 * BLOCK + outside + adapter)
    spread = memory_of(training(method=four, processes_per_node=8), "FSDP2")
    assert spread.total - spread.context == pytest.approx(0.516 * 32 * BLOCK + outside + 4 * 41_943_040), "read whole"
    several = {"gpu_memory": 6 * GIB, "processes_per_node": 8}
    assert chosen(method=eight, **several)[0] == "DDP", "FSDP2 cannot spread it"
    assert chosen(method=four, **several)[0] == "FSDP2", "and nothing waits in the host's memory"


@pytest.mark.parametrize(
    ("machines", "gpus"),
    [
        ({"processes_per_node": 8, "gpu_memory": 80 * GIB}, 1),
        ({"processes_per_node": 8, "gpu_memory": 24 * GIB}, 1),
        ({"processes_per_node": 8, "gpu_memory": 16 * GIB}, 2),
        ({"processes_per_node": 8, "gpu_memory": 16 * GIB, "precision": "FP32"}, 3),
        ({"processes_per_node": 2, "gpu_memory": 12 * GIB, "precision": "FP32"}, 2),
        ({"processes_per_node": 8, "precision": "FP32"}, 2),
    ],
)
def test_a_model_is_evaluated_on_as_many_gpus_as_hold_it(machines: dict[str, Any], gpus: int) -> None:
    order = training(**machines).order
    assert gpus_to_evaluate(ModelShape.of(LLAMA_8B), order) == gpus


def test_activations_and_logits_go_by_tokens() -> None:
    found = memory_of(training(tokens=2048, rows=4), "DDP")
    assert found.activations == 4 * 2048 * 32 * (26 * 4096 + 8 * 4096 + 8 * 14336)
    assert found.logits == 512 * 128256 * 8, "of the tokens that the output layer takes at a time"
    odd = replace(training(tokens=2048, rows=4), shape=ModelShape.of({**LLAMA_8B, "model_type": "odd"}))
    assert memory_of(odd, "DDP").logits == 4 * 2048 * 128256 * 12
    assert memory_of(replace(training(tokens=2048), writes=False), "DDP").logits == 0


def chosen(**given: Any) -> tuple[str, bool | None]:
    choice = choose(training(tokens=1024, **given))
    return choice.memory.name, choice.fits


def test_auto_takes_the_fastest_that_fits() -> None:
    assert chosen(gpu_memory=180 * GIB) == ("DDP", True)
    assert chosen(gpu_memory=80 * GIB, processes_per_node=8) == ("FSDP2", True)
    assert chosen(gpu_memory=80 * GIB) == ("FSDP2 with offload", True), "alone there is nobody to share with"
    assert chosen(gpu_memory=80 * GIB, method=LORA) == ("DDP", True)
    assert chosen(gpu_memory=24 * GIB, processes_per_node=8) == ("FSDP2 with offload", True)
    little = {"gpu_memory": 24 * GIB, "processes_per_node": 8, "memory_limit": 64 * GIB}
    assert chosen(**little) == ("FSDP2 with offload", False), "what is offloaded must have a place"
    assert chosen(gpu_memory=141 * GIB, strategy="DeepSpeedZeRO3", processes_per_node=8) == ("DeepSpeedZeRO3", True)


AGAIN = "activation checkpointing"


def test_activations_are_computed_again_where_memory_needs_it() -> None:
    long = {"tokens": 8192, "rows": 2}
    found = memory_of(training(method=LORA, **long), "DDP", recomputes=True)
    assert found.activations == 2 * 8192 * (32 * 2 * 4096 + 2 * (18 * 4096 + 10 * 4096 + 8 * 14336))

    def names(**given: Any) -> list[str]:
        return [each.name for each in choose(training(**long, gpu_memory=1, **given)).tried]

    auto = {"activation_checkpointing": "Auto", "processes_per_node": 8}
    fast = ["DDP", "FSDP2", f"DDP with {AGAIN}", f"FSDP2 with {AGAIN}"]
    slow = ["FSDP2 with offload", f"FSDP2 with offload and {AGAIN}"]
    assert names(**auto) == [*fast, *slow]
    assert names(**auto, nodes=2) == [fast[0], fast[2], fast[1], fast[3], *slow], "exchanges between machines cost more"
    assert names(**auto, strategy="DeepSpeedZeRO2") == ["DeepSpeedZeRO2", f"DeepSpeedZeRO2 with {AGAIN}"]
    assert names(**auto, gpus=False, memory_limit=1) == [fast[0], fast[2]]
    assert names(**{**auto, "activation_checkpointing": "Always"}) == [*fast[2:], slow[1]]
    little = training(**long, method=LORA, gpu_memory=40 * GIB, activation_checkpointing="Never", strategy="DDP")
    assert any(way.startswith("training.activationCheckpointing: Auto (DDP with") for way in ways_out(little))
    unable = replace(training(**long, gpu_memory=1, **auto), recomputable=False)
    assert not any(each.recomputes for each in choose(unable).tried)


def test_auto_assumes_little_where_nobody_says() -> None:
    assert chosen(processes_per_node=8) == ("FSDP2", None)
    assert chosen() == ("DDP", None), "never offload for an assumption"
    assert choose(training()).text.endswith("24.0 GiB are assumed, since compute.gpuMemory is not set")


def test_cpus_stay_with_ddp() -> None:
    assert chosen(gpus=False) == ("DDP", None)
    assert chosen(gpus=False, processes_per_node=4, memory_limit=100 * GIB) == ("DDP", False)
    assert chosen(gpus=False, memory_limit=500 * GIB) == ("DDP", True)


def test_a_refusal_says_what_would_fit_with_numbers() -> None:
    short = training(tokens=4096, rows=4, gpu_memory=24 * GIB)
    said = problem(short, choose(short))
    assert said is not None
    assert said.startswith("compute.gpuMemory: 24.0 GiB: FSDP2 with offload needs ")
    assert "What would fit: training.microBatchSize: 1 and training.maxLength: 1024 (FSDP2 with" in said, "two things"
    least = replace(short, tokens=8, order=short.order.model_copy(update={"gpu_memory": 2 * GIB, "rows": 1}))
    assert "What would fit: nothing of what was computed: half" in (problem(least, choose(least)) or "")
    named = training(tokens=1024, gpu_memory=24 * GIB, strategy="DDP")
    assert ways_out(named)[0].startswith("compute.strategy: Auto, without compute.offload (FSDP2 with offload, ")
    narrow = training(gpu_memory=24 * GIB, memory_limit=100 * GIB)
    said = problem(narrow, choose(narrow)) or ""
    assert said.startswith(
        "compute.gpuMemory: 24.0 GiB, compute.resources.limits.memory: 100 GiB: FSDP2 with offload needs"
    )
    assert " and 120 GiB of each machine's own memory; DDP would need" in said
    nearly = training(tokens=2048, method=LORA, gpu_memory=20 * GIB)
    assert ways_out(nearly) == [
        "training.maxLength: 1024 (FSDP2 with offload, 12.5 GiB)",
        "training.maxLength: 512 (FSDP2 with offload, 8.6 GiB)",
    ]
    assert problem(training(gpu_memory=180 * GIB), choose(training(gpu_memory=180 * GIB))) is None


def test_what_would_fit_is_no_job_that_is_refused() -> None:
    named = training(rows=5, tokens=64, strategy="DeepSpeedZeRO1", gpu_memory=75 * GIB)
    ways = " ".join(ways_out(named))
    assert "method.type: LoRA" in ways
    assert "QLoRA" not in ways, "DeepSpeed cannot share it out"
    assert "microBatchSize: 2" not in ways, "of five examples"


def test_a_cpu_whose_margin_is_taken_is_told_so() -> None:
    tight: Memory = memory_of(training(gpus=False, tokens=256), "DDP")
    close = training(gpus=False, tokens=256, memory_limit=tight.total + 1)
    choice = choose(close)
    assert choice.fits
    assert (problem(close, choice) or "").startswith("compute.resources.limits.memory: ")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA-H100-80GB-HBM3", 989e12),
        ("nvidia-l4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("T4", None),
    ],
)
def test_gpus_are_known_by_their_names(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak
