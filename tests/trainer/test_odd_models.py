"""What some models do in training that processes which share the work have to do alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import torch
from tests.trainer import tiny_models
from tests.trainer.test_training_together import pair
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSeq2SeqLM

from finetune_api.finetunejob import LoRA
from finetune_api.run import MethodOrder
from finetune_api.shared_fields import Task
from finetune_trainer.models import base_model, saved_model
from finetune_trainer.process.gang import joined
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import Encoded
from finetune_trainer.training.methods.choose import method_of, trainable_parameters
from finetune_trainer.training.parallel.fsdp2 import FullySharded
from finetune_trainer.training.sharing import ParallelSettings, Root


def test_blocks_inside_of_blocks_are_shared_out_with_them(tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_models.make("mbart", to=tmp_path / "mbart"))
    with joined(gpus=False, meets=True) as gang:
        parallel = FullySharded(gang, ParallelSettings())
        ask = parallel.prepare(Root(model), optimizer=partial(torch.optim.AdamW, model.parameters()))
        tokens = torch.ones(1, 4, dtype=torch.int64)
        ask(lambda inner: inner(input_ids=tokens, labels=tokens).loss).backward()
        assert parallel.active()
        assert all(isinstance(each.grad, DTensor) for each in model.parameters())


def test_what_is_trained_beside_a_base_in_bf16_is_in_fp32_and_verified(tmp_path: Path) -> None:
    for name, kind in (("bert", "SequenceClassification"), ("llama", "Chat")):
        task = task_of(cast("Task", kind))
        folder = tiny_models.make(name, to=tmp_path / name)
        base = base_model.load_base(folder, task=task.name, dtype="bfloat16", labels=["yes", "no"])
        model = method_of(MethodOrder(type="LoRA", lora=LoRA(rank=2))).applied(base, task=task, base_uri="file:///base")
        assert {each.dtype for each in trainable_parameters(model).values()} == {torch.float32}, name
        example = Encoded(ids=tuple(range(5, 15)), targets=(*[False] * 5, *[True] * 5), label=1)
        with torch.autocast("cpu", torch.bfloat16):
            probe = saved_model.probe(model, example=example, task=task.name)
        written = tmp_path / f"{name}-trained"
        saved = saved_model.write(
            model,
            tokenizer=base_model.load_tokenizer(folder),
            folder=written,
            base_folder=folder,
            format="Adapter",
            task=task.name,
            labels=["yes", "no"],
        )
        saved_model.verify(model, saved=saved, probe=probe, load_again=saved_model.in_this_process)


def test_all_processes_run_all_layers(tmp_path: Path) -> None:
    """M2M100 and others leave whole layers out by chance: other ones in each process, which wait for each other."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_models.make("m2m_100", to=tmp_path / "m2m"))
    assert model.get_encoder().layerdrop > 0
    Root(model)
    assert [part.layerdrop for part in model.modules() if hasattr(part, "layerdrop")] == [0.0, 0.0]


def test_ddp_takes_weights_that_nothing_asks() -> None:
    """Of LED, Pegasus, Marian and others."""
    program = """
import torch
from finetune_trainer.process.gang import joined
from finetune_trainer.training.parallel.ddp import Replicated
from finetune_trainer.training.sharing import ParallelSettings, Root
with joined(gpus=False) as gang:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"asked": torch.nn.Linear(2, 1), "idle": torch.nn.Linear(2, 1)})
    named, parallel = dict(model.named_parameters()), Replicated(gang, ParallelSettings())
    ask = parallel.prepare(Root(model), optimizer=lambda: torch.optim.AdamW(model.parameters()))
    for step in range(3):
        for last in (False, True):
            with parallel.accumulating(last=last):
                parallel.backward(ask(lambda inner: inner["asked"](torch.ones(2)).sum()), weight=4)
        parallel.step(named, learning_rate=0.1, max_norm=1.0)
    print("SAID", {name.partition(".")[0] for name, _ in parallel.moments(named)})
"""
    assert [text.split("SAID ")[1].strip() for text in pair("-c", program)] == ["{'asked'}"] * 2
