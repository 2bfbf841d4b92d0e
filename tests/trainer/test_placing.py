"""Models that are spread over several devices. There are no GPUs here: their place takes what accelerate moves layers
between just the same, memory and disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import tiny_models

from finetune_api.finetunejob import LoRA
from finetune_api.run import MethodOrder
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.rows import Message
from finetune_trainer.evaluation.outcomes import run_model
from finetune_trainer.models import base_model
from finetune_trainer.models.placing import spread
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.task import Decoding, ModelRun
from finetune_trainer.training.methods.choose import method_of

SAYINGS = ("amber basil", "cedar delta ember fjord", "grove", "haven indigo jade")


@pytest.fixture(params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_models.make(request.param, to=tmp_path / request.param)


def asked(model: Any, folder: Path) -> ModelRun:
    examples = [
        Example(
            id=text,
            group=text,
            source="s",
            messages=tuple(Message(role=role, content=text) for role in ("user", "assistant")),
        )
        for text in SAYINGS
    ]
    decoding = Decoding(task="Chat", max_length=64, max_new_tokens=5, batch_size=3, generate=True)
    tokenizer = base_model.load_tokenizer(folder)
    return run_model(model.eval(), tokenizer, examples, decoding=decoding, labels=(), who="candidate")


def test_a_model_that_is_spread_answers_as_a_whole_one(folder: Path, tmp_path: Path) -> None:
    base = base_model.load_base(folder, task="Chat", dtype="float32")
    torch.manual_seed(1)
    method = method_of(
        MethodOrder(type="LoRA", lora=LoRA(rank=2, alpha=4.0, dropout=0.0, target_modules=["all-linear"]))
    )
    model = method.applied(base, task=task_of("Chat"), base_uri="file:///base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    whole = asked(model, folder)
    size = sum(each.nbytes for each in model.parameters())
    parts = spread(model, room={"cpu": size * 0.6, "disk": size}, folder=tmp_path / "disk")
    assert len(set(map(str, parts.hf_device_map.values()))) == 2
    assert asked(parts, folder).outcomes == whole.outcomes
