"""From logits to the next token, and from tokens to text that can be shown at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.tasks.answer_ends import answer_text

_GREEDY_BELOW = 1e-5
_INCOMPLETE = "\ufffd"
_LONGEST_WAIT = 16
"""Tokens after which what still is no character is shown as it is: else each token would be read again and again."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Temperature 0, the default, takes the likeliest, as the evaluation did."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (Holtzman et al. 2020, nucleus sampling)."""
    seed: int | None = None


class Sampler:
    """Draws tokens for one answer. The same seed draws the same tokens from the same logits."""

    def __init__(self, sampling: Sampling, *, device: torch.device) -> None:
        self._sampling = sampling
        self._generator = torch.Generator(device=device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    @torch.inference_mode()
    def next_token(self, logits: torch.Tensor) -> int:
        """The next token for logits of shape (vocabulary,). Raises FloatingPointError where they are no numbers."""
        likeliest = int(logits.argmax())  # of NaN, wherever there is one
        if not math.isfinite(logits[likeliest]):
            raise FloatingPointError("the model's logits are no numbers: its weights or its precision overflow")
        if self._sampling.temperature < _GREEDY_BELOW:
            return likeliest
        probabilities = (logits.float() / self._sampling.temperature).softmax(dim=-1)
        if self._sampling.top_p < 1.0:
            ordered, indices = probabilities.sort(descending=True)
            before = ordered.cumsum(dim=-1) - ordered  # the likeliest one always stays
            kept = torch.where(before < self._sampling.top_p, ordered, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter_(0, indices, kept)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


class AnswerText:
    """The answer's text as it grows: whole characters only, and nothing that may turn out to be a stop string.

    A token's text depends on the one before it (blanks, characters of several tokens), so the last piece is always
    decoded together with the new one.
    """

    def __init__(self, tokenizer: Any, *, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._shown_from = 0
        self._read_to = 0
        self._held = ""
        self.stopped = False
        """Whether a stop string was met; nothing follows it."""

    def push(self, token: int) -> str:
        """Add a token; the text that may be shown now."""
        self._tokens.append(token)
        known = answer_text(self._tokens[self._shown_from : self._read_to], self._tokenizer)
        text = answer_text(self._tokens[self._shown_from :], self._tokenizer)
        late = len(self._tokens) - self._read_to >= _LONGEST_WAIT
        if not late and (text.endswith(_INCOMPLETE) or len(text) <= len(known)):
            return ""
        self._read_to, before = len(self._tokens), self._read_to
        self._shown_from = self._read_to if late else before  # what comes now does not belong to it
        return self._release(text[len(known) :], last=False)

    def finish(self) -> str:
        """The rest, when no token follows."""
        if self.stopped:
            return ""
        known = answer_text(self._tokens[self._shown_from : self._read_to], self._tokenizer)
        text = answer_text(self._tokens[self._shown_from :], self._tokenizer)
        return self._release(text[len(known) :], last=True)

    def _release(self, text: str, *, last: bool) -> str:
        self._held += text
        met = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if met:
            self.stopped = True
            return self._held[: min(met)]
        keep = 0 if last else self._possible_beginning()
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def _possible_beginning(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
