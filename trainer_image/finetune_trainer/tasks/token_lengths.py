"""How long the examples are in tokens of the base model, and how many would be cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.dataset import Example
from finetune_trainer.tasks.chat_template import render

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
    """Tokens of each example. Raises jinja2.TemplateError for a chat that the template refuses."""
    lengths: list[int] = []
    for first in range(0, len(examples), _BATCH):
        batch = examples[first : first + _BATCH]
        if batch[0].messages is not None:
            texts = [
                render([message.to_dict() for message in example.messages or ()], tokenizer, tools=example.tools)
                for example in batch
            ]
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
