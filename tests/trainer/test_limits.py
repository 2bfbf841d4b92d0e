"""How much models read, and that filling texts up changes nothing, for every family that is told apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.trainer import tiny_models
from tests.trainer.tiny_tokenizer import encoder_tokenizer, tiny_tokenizer

from finetune_trainer.models import base_model
from finetune_trainer.models.limits import context_in, context_of, padding_of
from finetune_trainer.serving.classification import Classes, Classification, Classifier, Texts
from finetune_trainer.tasks.likelihood import class_log_probabilities

hf: Any = transformers  # its signatures are not those that its configurations take
SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = [[20, 21, 22], [30, 31, 32, 33, 34, 35, 36, 37], [40, 41], list(range(20, 60))]


def saved(config: Any, to: Path, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    config.num_labels = 2
    model = hf.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)  # so that padding that is seen makes a difference
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


# -- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", ["none", "another than the tokenizer's", "a text's", "beyond the vocabulary"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "falcon", "qwen3"])
def test_a_decoders_classes_do_not_depend_on_the_batch(family: str, pad: str, tmp_path: Path) -> None:
    """In evaluation and in the server, whatever the configuration says of padding."""
    tokenizer = tiny_tokenizer(pad=None if pad == "none" else "<|endoftext|>")
    config = tiny_models.DECODERS[family](tokenizer)
    wanted = {"none": None, "another than the tokenizer's": 1, "a text's": 37, "beyond the vocabulary": 50_000}[pad]
    folder = saved(config, tmp_path, tokenizer)
    changed = hf.AutoConfig.from_pretrained(str(folder))
    changed.pad_token_id = wanted
    changed.save_pretrained(folder)
    agree(folder, tokenizer)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2", "modernbert"])
def test_an_encoders_classes_do_not_depend_on_the_batch(family: str, tmp_path: Path) -> None:
    tokenizer = encoder_tokenizer()
    agree(saved(tiny_models.ENCODERS[family](tokenizer), tmp_path, tokenizer), tokenizer)


def test_classes_do_not_depend_on_a_longer_text_that_positions_are_stretched_for(tmp_path: Path) -> None:
    """Phi 3 and 4 with long contexts: beyond so many tokens all texts of a pass are turned otherwise."""
    tokenizer = tiny_tokenizer()
    config = tiny_models.DECODERS["phi3"](tokenizer)
    config.original_max_position_embeddings = 20
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 1.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 32.0],
        "original_max_position_embeddings": 20,
    }
    agree(saved(config, tmp_path, tokenizer), tokenizer)


def agree(folder: Path, tokenizer: Any) -> None:
    model = base_model.load_model(folder, task="SequenceClassification", dtype="float32", labels=["a", "b"])
    run = partial(class_log_probabilities, model, pad_id=padding_of(model))
    alone = torch.tensor([run([text], batch_size=1)[0] for text in TEXTS])
    assert alone.std(dim=0).max() > 1e-3, "texts differ, so that a mix-up would show"
    torch.testing.assert_close(torch.tensor(run(TEXTS, batch_size=len(TEXTS))), alone, rtol=1e-4, atol=1e-4)
    server = Classifier.of(model=model, tokenizer=tokenizer, labels=["a", "b"])
    (answered,) = (classes for _, classes in Classification(server).round([Texts(ids=[tuple(text) for text in TEXTS])]))
    assert isinstance(answered, Classes)
    torch.testing.assert_close(torch.tensor(answered.probabilities), alone.exp(), rtol=1e-4, atol=1e-4)


# -- context ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (lambda: hf.LlamaConfig(**SIZE, max_position_embeddings=256), 256),
        (lambda: hf.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=100), 100),
        (lambda: hf.OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4,
                              word_embed_proj_dim=32, max_position_embeddings=64), 64),
        (lambda: hf.BertConfig(**SIZE, max_position_embeddings=64), 64),
        (lambda: hf.RobertaConfig(**SIZE, max_position_embeddings=130, pad_token_id=1), 128),
        (lambda: hf.BartConfig(d_model=32, encoder_layers=1, decoder_layers=1, max_position_embeddings=64), 64),
        (lambda: hf.BloomConfig(hidden_size=32, n_layer=1, n_head=4), None),
        (lambda: hf.MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4), None),
    ],
    ids=["llama", "gpt2", "opt", "bert", "roberta", "bart", "bloom", "mamba"],
)  # fmt: skip
def test_what_a_model_can_read(config: Callable[[], Any], limit: int | None, tmp_path: Path) -> None:
    """Said from the configuration alone, and as many tokens go through the model; one more does not where it counts."""
    tokenizer = tiny_tokenizer()
    made = config()
    made.vocab_size = len(tokenizer)
    made.save_pretrained(tmp_path)
    assert context_in(tmp_path, tokenizer, generates=True) == limit
    model = hf.AutoModel.from_config(made).eval()
    assert context_of(model, tokenizer, generates=True) == limit
    assert model(input_ids=torch.full((1, limit or 300), 30)).last_hidden_state.shape[1] == (limit or 300)


def llama(**rope: Any) -> Any:
    return hf.LlamaConfig(**SIZE, max_position_embeddings=1000, rope_parameters={"rope_theta": 1e4, **rope})


@pytest.mark.parametrize(
    ("config", "written", "generates", "limit"),
    [
        (llama(rope_type="default"), 10**30, True, 1000),
        (llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=1000), 10**30, True, 4000),
        (llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=250), 10**30, True, 1000),
        (llama(rope_type="linear", factor=4.0), 4000, True, 4000),
        (llama(rope_type="linear", factor=4.0), 10**30, True, 1000),
        (llama(rope_type="dynamic", factor=4.0), 4000, True, 1000),
        (llama(rope_type="default"), 500, True, 1000),
        (llama(rope_type="default"), 500, False, 500),
        (hf.BloomConfig(hidden_size=32, n_layer=1, n_head=4), 2048, True, 2048),
        (hf.T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4), 512, True, None),
        (hf.T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4), 512, False, 512),
    ],
)
def test_stretched_positions_and_what_the_tokenizer_says(
    config: Any, written: int, generates: bool, limit: int | None, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = written
    assert context_in(tmp_path, tokenizer, generates=generates) == limit


def test_positions_of_pictures_do_not_limit_the_text() -> None:
    vision = {**SIZE, "image_size": 112, "patch_size": 14}  # 64 places in a picture
    text = {**SIZE, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300, "max_position_embeddings": 1000}
    with torch.device("meta"):
        model = hf.AutoModel.from_config(hf.Gemma3Config(text_config=text, vision_config=vision))
    assert any(isinstance(table, torch.nn.Embedding) and table.num_embeddings == 64 for table in model.modules())
    assert context_of(model, tiny_tokenizer(), generates=True) == 1000
