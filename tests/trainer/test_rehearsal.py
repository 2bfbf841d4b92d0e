"""What is tried before training; the matrix (test_matrix.py) tries it on what works and on what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.trainer import tiny_models

from finetune_api.finetunejob import LoRA
from finetune_api.results import ExitCode
from finetune_api.run import Locations, MethodOrder, ModelOrder, Precision
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer.models import saved_model
from finetune_trainer.models.base_model import DType
from finetune_trainer.process import memory
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.training.rehearsal import Rehearsal, _examples, rehearse, was_rehearsed

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


def test_a_model_that_ends_its_answer_at_once_is_not_changed_by_padding(tmp_path: Path) -> None:
    base = tiny_models.make("llama", to=tmp_path / "base")
    model = hf.AutoModelForCausalLM.from_pretrained(str(base))
    tokenizer = hf.AutoTokenizer.from_pretrained(str(base))
    examples = _examples(model, tokenizer, pad_id=tokenizer.pad_token_id, task=task_of("Chat"))
    answers = [int(model(input_ids=torch.tensor([each.ids])).logits[0, -1].argmax()) for each in examples]
    assert answers[0] != answers[3], "what is asked beside it goes on"
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": answers[0]}))
    order, storage = order_and_storage(tmp_path)
    order = replace(order, model=ModelOrder(uri=order.model.uri, task="Chat"), labels=None)
    rehearse(order, base_folder=base, storage=storage)
    assert was_rehearsed(order, storage=storage)


@pytest.mark.parametrize(
    "settings", [{"do_sample": False, "temperature": 0.6}, {"stop_strings": ["###"]}], ids=["not sampled", "stops"]
)
def test_how_the_base_would_sample_changes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_models.make("llama", to=tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps(settings))
    order, storage = order_and_storage(tmp_path)
    order = replace(order, model=ModelOrder(uri=order.model.uri, task="Chat"), method=MethodOrder(type="Full"))
    rehearse(replace(order, labels=None), base_folder=base, storage=storage)
    assert was_rehearsed(replace(order, labels=None), storage=storage)


def test_a_tokenizer_with_several_templates_is_saved_in_a_folder(tmp_path: Path) -> None:
    base = tiny_models.make("llama", to=tmp_path / "base")
    templates = base / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text((base / "chat_template.jinja").read_text())
    order, storage = order_and_storage(tmp_path)
    rehearse(order, base_folder=base, storage=storage)
    assert was_rehearsed(order, storage=storage)


def test_ends_of_lines_that_saving_changes_make_no_other_template(tmp_path: Path) -> None:
    base = tiny_models.make("llama", to=tmp_path / "base")
    template = (base / "chat_template.jinja").read_text().replace("\n", "\r\n") + "\r\n"
    (base / "chat_template.jinja").unlink()
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    order, storage = order_and_storage(tmp_path)
    rehearse(order, base_folder=base, storage=storage)
    assert was_rehearsed(order, storage=storage)


def test_what_does_not_fit_is_left_untried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training too: a rehearsal that the kernel ends would end a run that has room for the training itself."""
    base = tiny_models.make("bert", to=tmp_path / "base")
    order, storage = order_and_storage(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    rehearse(order, base_folder=base, storage=storage)
    assert not was_rehearsed(order, storage=storage)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"type": "DoRA", "lora": {"rank": 2, "targetModules": ["nowhere"]}}, "NoSuchModule"),
        ({"type": "QLoRA", "lora": {"rank": 64}, "quantisation": {"bits": 4}}, "RankTooLarge"),
        ({"type": "Full", "freeze": {"layers": "7"}}, "NoSuchParameter"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_of_what_does_not_fit_the_method_is_checked_all_the_same(
    method: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.make("bert", to=tmp_path / "base")
    order, storage = order_and_storage(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(StageError) as refused:
        rehearse(replace(order, method=MethodOrder.model_validate(method)), base_folder=base, storage=storage)
    assert (refused.value.reason, refused.value.exit_code) == (reason, ExitCode.BAD_CONFIGURATION)


@pytest.mark.parametrize(
    ("name", "precision", "what"),
    [
        ("deberta", "BF16", "training.precision: BF16: the base model .* cannot be trained in BF16: "),
        ("deberta", "Auto", "training.precision: Auto, which means BF16 on a GPU: .* cannot be trained in BF16: "),
        ("deberta", "FP32", None),
        ("bert", "BF16", None),
    ],
)
def test_a_step_is_tried_in_the_precision_of_the_run(
    name: str, precision: Precision, what: str | None, tmp_path: Path
) -> None:
    base = tiny_models.make(name, to=tmp_path / "base")
    order, storage = order_and_storage(tmp_path)
    order = replace(order, precision=precision, gpus=precision == "Auto", half_base=True)
    with nullcontext() if what is None else pytest.raises(StageError, match=what) as refused:
        rehearse(order, base_folder=base, storage=storage)
    if what is not None:
        assert (refused.value.reason, refused.value.exit_code) == ("UnsupportedModel", ExitCode.BAD_CONFIGURATION)
        assert refused.value.message.endswith("use training.precision: FP32, or another base model")


@pytest.mark.parametrize(("error", "gpus", "refuses"), [(TypeError, True, True), (NotImplementedError, True, False)])
def test_an_answer_is_tried_in_the_precision_that_it_is_proven_in(
    error: type[Exception], *, gpus: bool, refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only this CPU cannot do says nothing of a GPU."""
    base, load = tiny_models.make("bert", to=tmp_path / "base"), saved_model.SavedFolder.load

    def loaded(saved: saved_model.SavedFolder, *, dtype: DType = "float32") -> Any:
        if dtype == "bfloat16":
            raise error("no such kernel")
        return load(saved, dtype=dtype)

    monkeypatch.setattr(saved_model.SavedFolder, "load", loaded)
    order, storage = order_and_storage(tmp_path)
    order = replace(order, precision="BF16", gpus=gpus, half_base=True)
    with pytest.raises(StageError, match="cannot answer in BF16") if refuses else nullcontext():
        rehearse(order, base_folder=base, storage=storage)
    assert was_rehearsed(order, storage=storage) is not refuses


@pytest.mark.parametrize(("targets", "free"), [("all-linear", 1 << 40), ("all-linear", 1000), ("q_proj", 1 << 40)])
def test_an_adapter_of_experts_is_not_for_vllm(
    targets: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.make("mixtral", to=tmp_path / "base")
    monkeypatch.setattr(memory, "available", lambda: free)
    order, storage = order_and_storage(tmp_path)
    method = MethodOrder(type="LoRA", lora=LoRA(rank=2, target_modules=[targets]))
    order = replace(order, model=ModelOrder(uri=order.model.uri, task="Chat"), labels=None, vllm=True, method=method)
    with pytest.raises(StageError, match="vLLM") if targets == "all-linear" else nullcontext():
        rehearse(order, base_folder=base, storage=storage)


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _with_another_end(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|im_start|>"}))


def _without_a_mark(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    (mark,) = (each for each in document["added_tokens"] if each["content"] == "<|im_start|>")
    mark["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(document))


def _cutting_otherwise(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("lose", "what"),
    [
        (_without_template, "another chat template"),
        (_with_another_end, "other special tokens"),
        (_without_a_mark, "other marks"),
        (_cutting_otherwise, "other tokens for the same text"),
    ],
)
def test_a_tokenizer_that_is_saved_as_another_one_is_refused(
    lose: Callable[[Path], None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, save = tiny_models.make("llama", to=tmp_path / "base"), hf.PreTrainedTokenizerBase.save_pretrained

    def losing(tokenizer: Any, folder: str, **named: Any) -> Any:
        saved = save(tokenizer, folder, **named)
        lose(Path(folder))
        return saved

    monkeypatch.setattr(hf.PreTrainedTokenizerBase, "save_pretrained", losing)
    monkeypatch.setattr(memory, "available", lambda: 1000)  # it needs no weights: the largest models are looked at too
    order, storage = order_and_storage(tmp_path)
    with pytest.raises(StageError, match=f"its tokenizer has {what}, so that") as refused:
        rehearse(order, base_folder=base, storage=storage)
    assert (refused.value.reason, refused.value.exit_code) == ("TokenizerNotSaved", ExitCode.BAD_CONFIGURATION)
    assert not was_rehearsed(order, storage=storage)
