"""PURE: vLLM's command line for a version, full model or adapter. Run on CPUs (tests/vllm), not yet on a GPU.

The flags are those of vLLM's engine arguments (https://docs.vllm.ai/en/stable/configuration/engine_args.html) and of
its LoRA guide (https://docs.vllm.ai/en/stable/features/lora.html). What it loads are local folders: an init container
(`finetune_trainer fetch`) has verified them by digest and linked them as `model` and `base`.
"""

from __future__ import annotations

import json

from finetune_api.modelversion import ModelVersionSpec
from finetune_api.run import CHAT_TEMPLATE_OPTIONS, GENERATION_FOLDER, MIDDLEWARE
from finetune_api.tasks import METHODS, TASKS

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank accepts: MaxLoRARanks in vllm/config/lora.py."""
_BASE_SUFFIX = "-base"
SHUTDOWN_SECONDS = 30
"""After SIGTERM, for what is under way; its teardown took up to 20 s more."""
_DTYPES = {"FP32": "float32", "BF16": "bfloat16"}


class NotServableError(ValueError):
    """vLLM cannot serve this version. `str()` says why and what would."""


def vllm_arguments(
    *, version: ModelVersionSpec, model_name: str, folder: str, gpus: int, memory_bytes: int | None, port: int
) -> list[str]:
    """The arguments of `vllm serve`, the command itself included.

    `model_name` is what clients call it; `folder` holds `model` and, for an adapter, `base`; the pod's `gpus` share
    each layer (tensor parallelism). Without any, keys and values get a quarter of the container's `memory_bytes`: vLLM
    alone would take nine tenths of what the node has. What a request leaves unset is decoded greedily, answers end
    where they ended in the evaluation, prompts are written and numbers are computed as there. Raises NotServableError.
    """
    if "VLLM" not in TASKS[version.task].runtimes:
        raise NotServableError(f"runtime VLLM does not serve task {version.task}; use serving.runtime FastAPI")
    adapter = version.artifact.format == "Adapter"
    loaded, served = (f"{folder}/base", model_name + _BASE_SUFFIX) if adapter else (f"{folder}/model", model_name)
    arguments = [
        "vllm", "serve", loaded,
        "--port", str(port),
        "--served-model-name", served,
        "--tensor-parallel-size", str(gpus or 1),
        "--load-format", "safetensors",
        "--no-trust-remote-code",
        "--generation-config", f"{folder}/{GENERATION_FOLDER}",
        "--override-generation-config", '{"temperature": 0.0}',
        "--shutdown-timeout", str(SHUTDOWN_SECONDS),
        "--disable-access-log-for-endpoints", "/health,/metrics",
        "--middleware", MIDDLEWARE,
    ]  # fmt: skip
    if TASKS[version.task].chat_template:
        arguments += ["--default-chat-template-kwargs", json.dumps(CHAT_TEMPLATE_OPTIONS)]
    if version.evaluation.precision is not None:  # alone it would round FP32 weights to BF16
        arguments += ["--dtype", _DTYPES[version.evaluation.precision]]
    if version.limit is not None:
        arguments += ["--max-model-len", str(version.limit)]
    if adapter:
        # The adapter's folder also has the tokenizer as trained, its chat template included.
        arguments += [
            "--tokenizer", f"{folder}/model",
            "--enable-lora",
            "--lora-modules", f"{model_name}={folder}/model",
            "--max-loras", "1",
            "--max-lora-rank", str(_rank_for(version)),
        ]  # fmt: skip
    if not gpus and memory_bytes is not None:
        arguments += ["--kv-cache-memory-bytes", str(memory_bytes // 4)]
    return arguments


def _rank_for(version: ModelVersionSpec) -> int:
    """The smallest rank that vLLM accepts and the adapter fits into."""
    lora, kind = version.method.get("lora") or {}, version.method.get("type")
    rank = lora.get("rank")
    if not isinstance(rank, int) or any(name == kind and not each.vllm for name, each in METHODS.items()):
        raise NotServableError(
            f"runtime VLLM serves LoRA adapters; this one was made by {kind}: use serving.runtime Transformers"
        )
    accepted = next((each for each in _RANKS if each >= rank), None)
    if accepted is None:
        raise NotServableError(f"runtime VLLM serves adapters up to rank {_RANKS[-1]}, this one has {rank}")
    return accepted
