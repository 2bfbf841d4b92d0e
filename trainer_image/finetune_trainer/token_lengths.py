"""How long the examples are in tokens of the base model, and how many would be cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from finetune_trainer.dataset import Example
from finetune_trainer.errors import bad_configuration, bad_data

_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class TokenLengths:
    """Tokens per example, chat template and special tokens included."""

    p50: int
    p95: int
    max: int
    truncated_fraction: float
    """Share of the examples that have more tokens than the limit."""

    @classmethod
    def of(cls, lengths: Sequence[int], *, limit: int) -> TokenLengths:
        """The percentiles (nearest rank) of at least one length."""
        ordered = sorted(lengths)
        return cls(
            p50=ordered[math.ceil(0.50 * len(ordered)) - 1],
            p95=ordered[math.ceil(0.95 * len(ordered)) - 1],
            max=ordered[-1],
            truncated_fraction=sum(length > limit for length in ordered) / len(ordered),
        )


def measure(examples: Sequence[Example], *, tokenizer: Any) -> list[int]:
    """Tokens of each example.

    Raises StageError: 78 for chats where the model has no chat template, 65 for a chat that the template refuses.
    """
    lengths: list[int] = []
    for first in range(0, len(examples), _BATCH):
        batch = examples[first : first + _BATCH]
        if batch[0].messages is not None:
            texts = [_rendered(example, tokenizer) for example in batch]
            lengths += [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        else:
            encoded = tokenizer([example.text or "" for example in batch])["input_ids"]
            lengths += [
                len(ids) + _end_of_text(example, ids, tokenizer) for example, ids in zip(batch, encoded, strict=True)
            ]
    return lengths


def _end_of_text(example: Example, ids: Sequence[int], tokenizer: Any) -> int:
    """1 where training adds the token that ends a text; classifiers' tokenizers add their own."""
    end = tokenizer.eos_token_id
    return int(example.label is None and end is not None and (not ids or ids[-1] != end))


def _rendered(example: Example, tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise bad_configuration(
            "NoChatTemplate",
            "the base model has no chat template, so chats cannot be written for it; use its instruction-tuned version,"
            " or task CausalLM with rows of format Text",
        )
    messages = [message.to_dict() for message in example.messages or ()]
    try:
        tools = example.tools and list(example.tools)
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))
    except TemplateError as error:
        raise bad_data(
            "ChatTemplateRefused",
            f"source {example.source}: the base model's chat template refuses a chat: {error}. It begins with"
            f" {messages[0]['content'][:100]!r} and has the roles {', '.join(message['role'] for message in messages)}",
        ) from error
