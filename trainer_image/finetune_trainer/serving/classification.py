"""Classes of texts with their probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.batching import pad
from finetune_trainer.encoding import text_tokens
from finetune_trainer.limits import context_of, padding_of

_BATCH = 16
_CHARACTERS_A_TOKEN = 100
"""At most, for all that is text: WordPiece reads longer words as one unknown token."""


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """One text's tokens."""

    ids: tuple[int, ...]
    truncated: bool
    """Longer than the model reads; its end was left out, as in training and evaluation."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What the model says of each text: probabilities in the order of the labels."""

    probabilities: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model that classifies texts."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    """In the order of the outputs."""
    longest: int | None
    """Tokens of a text that are read, as evaluated; None: no limit known."""

    def encode(self, text: str) -> EncodedText:
        """A text as the model reads it."""
        read = self.readable(text)
        ids, cut = text_tokens(read, tokenizer=self.tokenizer, max_length=self.longest)
        return EncodedText(ids=tuple(ids), truncated=cut or len(read) < len(text))

    def readable(self, text: str) -> str:
        """As much of a text as the model can possibly read. To tokenize 10 MB of which it reads 2 kB takes seconds."""
        return text if self.longest is None else text[: self.longest * _CHARACTERS_A_TOKEN]

    def classify(self, texts: Sequence[EncodedText]) -> Iterator[Classes | None]:
        """One batch a step, and the result last."""
        rows: list[list[float]] = []
        for first in range(0, len(texts), _BATCH):
            rows += self._probabilities([text.ids for text in texts[first : first + _BATCH]])
            yield None
        yield Classes(probabilities=rows)

    @classmethod
    def of(cls, *, model: Any, tokenizer: Any, labels: Sequence[str], limit: int | None = None) -> Classifier:
        """A loaded model. `limit`: tokens after which its evaluation cut a text."""
        known = context_of(model, tokenizer, task="SequenceClassification")
        longest = min((each for each in (known, limit) if each is not None), default=None)
        return cls(model=model, tokenizer=tokenizer, labels=tuple(labels), longest=longest)

    @torch.inference_mode()
    def _probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        tokens = pad(texts, value=padding_of(self.model)).to(self.model.device)
        mask = pad([[1] * len(text) for text in texts], value=0).to(self.model.device)
        logits = self.model(input_ids=tokens, attention_mask=mask).logits
        rows: list[list[float]] = logits.float().softmax(dim=-1).tolist()
        return rows
