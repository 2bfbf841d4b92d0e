"""What is tried before training; the matrix (test_matrix.py) tries it on what works and on what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.trainer import tiny_models

from finetune_api.finetunejob import LoRA
from finetune_api.run import Locations, MethodOrder, ModelOrder
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer import memory
from finetune_trainer.rehearsal import Rehearsal, rehearse, was_rehearsed
from finetune_trainer.storage import Storage

hf: Any = transformers  # its signatures are not those that its configurations take


def order_and_storage(root: Path) -> tuple[Rehearsal, Storage]:
    roots = [f"file://{root}"]
    locations = Locations(run=f"file://{root}/run", cache=f"file://{root}/cache", allowed_roots=roots)
    order = Rehearsal(
        locations=locations,
        model=ModelOrder(uri=f"file://{root}/base", task="SequenceClassification"),
        base=ResolvedModel(uri=f"file://{root}/base", digest=f"sha256:{'0' * 64}"),
        method=MethodOrder(type="LoRA", lora=LoRA(rank=2)),
        packing=False,
        labels=["a", "b"],
    )
    return order, Storage(locations=locations)


def test_a_model_that_reads_at_the_end_of_a_text_is_tried_on_texts_that_end(tmp_path: Path) -> None:
    tokenizer = tiny_models.encoder_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    layers = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    ends = {"eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0, "decoder_start_token_id": 0, "bos_token_id": 1}
    config = hf.BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, **layers, **ends
    )
    torch.manual_seed(0)
    hf.BartModel(config).save_pretrained(str(tmp_path / "base"))
    tokenizer.save_pretrained(str(tmp_path / "base"))
    order, storage = order_and_storage(tmp_path)
    rehearse(order, base_folder=tmp_path / "base", storage=storage)
    assert was_rehearsed(order, storage=storage)


def test_what_does_not_fit_is_left_untried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training too: a rehearsal that the kernel ends would end a run that has room for the training itself."""
    base = tiny_models.make("bert", to=tmp_path / "base")
    order, storage = order_and_storage(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    rehearse(order, base_folder=base, storage=storage)
    assert not was_rehearsed(order, storage=storage)
