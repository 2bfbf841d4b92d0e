"""Models to serve, made once for each worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from demo import assets
from peft import LoraConfig, get_peft_model
from tests.trainer.serving.server_process import publish
from tests.trainer.small_run import small_model
from transformers import AutoTokenizer, LlamaForCausalLM

from finetune_trainer.data.dataset import Example, Message
from finetune_trainer.data.held_out_probes import FILE_NAME, make_probes, to_text


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a context of 256 tokens and SmolLM2's tokenizer."""
    return small_model(tokenizer_folder=assets.smollm2_folder(), to=tmp_path_factory.mktemp("small") / "base")


@pytest.fixture(scope="session")
def small_chat(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A random adapter on it, with three probes."""
    torch.manual_seed(4)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(str(small_base)),
        LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False),
    )
    chats = [
        Example(
            id=str(number),
            group=str(number),
            source="tests",
            messages=(Message(role="user", content=f"question {number}"), Message(role="assistant", content="movies")),
        )
        for number in range(3)
    ]
    return publish(
        model.eval(),
        AutoTokenizer.from_pretrained(str(small_base)),
        folder=tmp_path_factory.mktemp("small-chat"),
        base=small_base,
        task="Chat",
        companions={FILE_NAME: to_text(make_probes(chats))},
    )
