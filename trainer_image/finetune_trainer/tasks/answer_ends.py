"""What ends an answer, and how its tokens read: one rule for evaluation, for the server, and for what vLLM is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig

from finetune_trainer.tasks.adapters import plain
from finetune_trainer.tasks.chat_template import render

_ANSWER = "answer"
_CHAT = ({"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER})


def answer_text(tokens: Sequence[int], tokenizer: Any) -> str:
    """An answer as it was generated: without its marks, and without what some tokenizers ask the library for, to take
    out blanks before `?`, `,` and their like.
    """
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def answer_ends(tokenizer: Any, declared: GenerationConfig) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's end of sequence, what the model's generation settings name, and
    the mark that the chat template writes behind an answer.
    """
    ids = named_ends(declared)
    known = tokenizer.added_tokens_decoder.keys() if _is_guess(declared) else range(len(tokenizer))
    found = {each for each in ids if each in known}
    return frozenset(found | {each for each in (tokenizer.eos_token_id, written_end(tokenizer)) if each is not None})


def declared_ends(model: Any) -> GenerationConfig:
    """The generation settings of a loaded model, or of its base where it is an adapter."""
    settings: GenerationConfig = plain(model).generation_config
    return settings


def written_end(tokenizer: Any) -> int | None:
    """The mark that the chat template writes behind an answer; None without a template, or where it writes text."""
    if not tokenizer.chat_template:
        return None
    try:
        text = render(_CHAT, tokenizer)
    except TemplateError:
        return None
    return mark_at_start(text.rpartition(_ANSWER)[2], tokenizer)


def mark_at_start(text: str, tokenizer: Any) -> int | None:
    """The added token (no text) that a text begins with."""
    ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def named_ends(settings: GenerationConfig) -> set[int]:
    """The tokens that generation settings name."""
    named = settings.eos_token_id
    return {int(each) for each in (named if isinstance(named, list | tuple) else [named]) if each is not None}


def _is_guess(settings: GenerationConfig) -> bool:
    """Whether they were made from config.json, whose class names an id even where the model's maker named none."""
    return bool(getattr(settings, "_from_model_config", False))
