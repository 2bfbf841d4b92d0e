"""Classes of texts with their probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.batching import pad

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

    def encode(self, text: str) -> EncodedText:
        """A text as the model reads it."""
        read = self.readable(text)
        ids = list(self.tokenizer(read)["input_ids"])
        longest = self._longest
        if longest is None or len(ids) <= longest:
            return EncodedText(ids=tuple(ids), truncated=len(read) < len(text))
        cut = self.tokenizer(read, truncation=True, max_length=longest)["input_ids"]
        return EncodedText(ids=tuple(cut), truncated=True)

    def readable(self, text: str) -> str:
        """As much of a text as the model can possibly read. To tokenize 10 MB of which it reads 2 kB takes seconds."""
        longest = self._longest
        return text if longest is None else text[: longest * _CHARACTERS_A_TOKEN]

    def classify(self, texts: Sequence[EncodedText]) -> Iterator[Classes | None]:
        """One batch a step, and the result last."""
        rows: list[list[float]] = []
        for first in range(0, len(texts), _BATCH):
            rows += self._probabilities([text.ids for text in texts[first : first + _BATCH]])
            yield None
        yield Classes(probabilities=rows)

    @classmethod
    def of(cls, *, model: Any, tokenizer: Any, labels: Sequence[str]) -> Classifier:
        """A loaded model."""
        classifier = cls(model=model, tokenizer=tokenizer, labels=tuple(labels))
        if model.config.pad_token_id is None:
            # Causal models look for the last token that is no padding.
            model.config.pad_token_id = classifier._padding
        return classifier

    @property
    def _padding(self) -> int:
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((each for each in ids if each is not None), 0))

    @property
    def _longest(self) -> int | None:
        limits = [getattr(self.model.config, "max_position_embeddings", None), self.tokenizer.model_max_length]
        return min((int(limit) for limit in limits if limit is not None and limit < 1 << 24), default=None)

    @torch.inference_mode()
    def _probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        tokens = pad(texts, value=self._padding).to(self.model.device)
        mask = pad([[1] * len(text) for text in texts], value=0).to(self.model.device)
        logits = self.model(input_ids=tokens, attention_mask=mask).logits
        rows: list[list[float]] = logits.float().softmax(dim=-1).tolist()
        return rows
