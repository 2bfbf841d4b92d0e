"""Classes of texts with their probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from finetune_api.panics import as_exception
from finetune_trainer.models.limits import context_of, padding_of
from finetune_trainer.serving.engine import is_broken
from finetune_trainer.tasks.batching import pad, stretched_beyond
from finetune_trainer.tasks.encoding import text_tokens

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
    last: bool = True
    """Nothing follows."""


@dataclass(kw_only=True, eq=False)
class Texts:
    """One request under way."""

    ids: list[tuple[int, ...]]
    found: list[list[float]] = field(default_factory=list)
    """Probabilities of the texts that were run."""


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

    def classify(self, texts: Sequence[EncodedText]) -> Texts:
        """Texts whose classes are wanted."""
        return Texts(ids=[text.ids for text in texts])

    @classmethod
    def of(cls, *, model: Any, tokenizer: Any, labels: Sequence[str], limit: int | None = None) -> Classifier:
        """A loaded model. `limit`: tokens after which its evaluation cut a text."""
        known = context_of(model, tokenizer, generates=False)
        longest = min((each for each in (known, limit) if each is not None), default=None)
        return cls(model=model, tokenizer=tokenizer, labels=tuple(labels), longest=longest)

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Of texts that are run together, shape (texts, labels)."""
        tokens = pad(texts, value=padding_of(self.model)).to(self.model.device)
        mask = pad([[1] * len(text) for text in texts], value=0).to(self.model.device)
        logits = self.model(input_ids=tokens, attention_mask=mask).logits
        rows: list[list[float]] = logits.float().softmax(dim=-1).tolist()
        return rows


def alike(lengths: Sequence[int], *, beyond: int | None = None) -> list[list[int]]:
    """Indices in groups whose texts are filled up to at most twice their length, and not `beyond` where they are not
    themselves (`stretched_beyond`).
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda each: lengths[each], reverse=True):
        most = 2 * lengths[index] if beyond is None or lengths[index] > beyond else min(2 * lengths[index], beyond)
        if not groups or most < lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(index)
    return groups


class Classification:
    """Runs a classifier on the texts of all requests under way."""

    kept_tokens = 0

    def __init__(self, model: Classifier) -> None:
        self._model = model
        self._beyond = stretched_beyond(model.model)

    def admits(self, work: Texts, *, under_way: Sequence[Texts]) -> bool:
        """Always: nothing is kept between two rounds."""
        return True

    def round(self, under_way: Sequence[Texts]) -> Iterator[tuple[Texts, Classes | Exception]]:
        """A batch in which each request has about as many texts; those of like length run together."""
        turns = itertools.zip_longest(*([(work, ids) for ids in work.ids[len(work.found) :]] for work in under_way))
        chosen = list(itertools.islice((one for turn in turns for one in turn if one is not None), _BATCH))
        rows: dict[int, list[float] | Exception] = {}
        for group in alike([len(ids) for _, ids in chosen], beyond=self._beyond):
            rows |= zip(group, self._run([chosen[index][1] for index in group]), strict=True)
        failed: dict[int, Exception] = {}
        for index, (work, _) in enumerate(chosen):
            row = rows[index]
            if isinstance(row, Exception):
                failed[id(work)] = row
            else:
                work.found.append(row)
        for work in under_way:
            if id(work) in failed:
                yield work, failed[id(work)]
            elif len(work.found) == len(work.ids):
                yield work, Classes(probabilities=work.found)

    def _run(self, texts: Sequence[Sequence[int]]) -> Sequence[list[float] | Exception]:
        """What the model cannot read is the fault of its own request."""
        try:
            return self._model.probabilities(texts)
        except BaseException as caught:
            error = as_exception(caught)
            if len(texts) == 1 or is_broken(error):
                return [error] * len(texts)
        return [row for text in texts for row in self._run([text])]
