"""Answers read alike wherever they are scored and shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune_trainer.serving.decoding import AnswerText
from finetune_trainer.tasks import causal

SAID = "a ? b"


def test_blanks_that_the_library_would_take_out_are_scored_as_they_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tokenizers other than byte pairs may ask for it (`clean_up_tokenization_spaces`): a right answer scored 0."""
    pieces = [("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in SAID.split())]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=True)
    tokens = tokenizer(SAID)["input_ids"]
    assert tokenizer.decode(tokens) == "a? b", "this tokenizer does ask for it"
    parts = {"generate_answers": [tokens], "prompt_ids": [], "answer_ends": (), "declared_ends": None}
    for name, found in parts.items():
        monkeypatch.setattr(causal, name, lambda *_, found=found, **__: found)
    asked: Any = SimpleNamespace(tokenizer=tokenizer, context=None, model=None, pad_id=0, who="it")
    decoding: Any = SimpleNamespace(max_new_tokens=8, batch_size=1)
    scored, _ = causal.CausalLM().answers(asked, [], decoding=decoding)
    text = AnswerText(tokenizer, stop=())
    served = "".join([*map(text.push, tokens), text.finish()])
    assert (scored, served) == ([SAID], SAID)
