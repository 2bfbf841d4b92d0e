"""vLLM's command line, word for word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.modelversion import ModelVersionSpec
from finetune_operator.endpoint.serving.vllm import NotServableError, vllm_arguments

VALID = Path(__file__).parents[2] / "data" / "valid_version.yaml"


def version(**changes: Any) -> ModelVersionSpec:
    document = yaml.safe_load(VALID.read_text())["spec"] | changes
    return ModelVersionSpec.model_validate(document)


def full(**changes: Any) -> ModelVersionSpec:
    artifact = version().artifact.to_dict() | {"format": "Full"}
    return version(artifact=artifact, method={"type": "Full"}, **changes)


def arguments(spec: ModelVersionSpec, **changes: Any) -> str:
    options: dict[str, Any] = {"model_name": "router", "folder": "/models", "gpus": 1, "port": 8000}
    options |= {"memory_bytes": None} | changes
    return " ".join(vllm_arguments(version=spec, **options))


def test_a_full_model() -> None:
    assert arguments(full(contextTokens=8192), gpus=4) == (
        "vllm serve /models/model --port 8000 --served-model-name router --tensor-parallel-size 4"
        " --load-format safetensors --no-trust-remote-code --generation-config /models/generation"
        ' --override-generation-config {"temperature": 0.0}'
        " --shutdown-timeout 30 --disable-access-log-for-endpoints /health,/metrics"
        " --middleware finetune_middleware.OnlyTheModel"
        ' --default-chat-template-kwargs {"enable_thinking": false, "thinking": false} --max-model-len 8192'
    )


def test_an_adapter() -> None:
    assert arguments(version()) == (
        "vllm serve /models/base --port 8000 --served-model-name router-base --tensor-parallel-size 1"
        " --load-format safetensors --no-trust-remote-code --generation-config /models/generation"
        ' --override-generation-config {"temperature": 0.0}'
        " --shutdown-timeout 30 --disable-access-log-for-endpoints /health,/metrics"
        " --middleware finetune_middleware.OnlyTheModel"
        ' --default-chat-template-kwargs {"enable_thinking": false, "thinking": false}'
        " --tokenizer /models/model --enable-lora --lora-modules router=/models/model --max-loras 1 --max-lora-rank 16"
    )


def test_on_cpus_one_process_has_the_whole_model_and_a_quarter_of_the_memory_for_keys_and_values() -> None:
    found = arguments(full(), gpus=0, memory_bytes=8 << 30)
    assert " --tensor-parallel-size 1 " in found
    assert found.endswith(f" --kv-cache-memory-bytes {2 << 30}")


@pytest.mark.parametrize(("rank", "accepted"), [(1, 1), (4, 8), (16, 16), (17, 32), (300, 320), (512, 512)])
@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_the_next_rank_that_vllm_accepts(method: str, rank: int, accepted: int) -> None:
    spec = version(method={"type": method, "lora": {"rank": rank}})
    assert arguments(spec).endswith(f"--max-lora-rank {accepted}")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (version(task="SequenceClassification"), "runtime FastAPI"),
        (version(method={"type": "LoRA", "lora": {"rank": 513}}), "up to rank 512"),
        (version(method={"type": "IA3"}), "made by IA3"),
        (version(method={"type": "DoRA", "lora": {"rank": 8}}), "made by DoRA"),
    ],
)
def test_what_vllm_cannot_serve(spec: ModelVersionSpec, named: str) -> None:
    with pytest.raises(NotServableError, match=named):
        arguments(spec)
