"""Answers, one token a step: the prompt is read, then comes each new token with the keys and values of those before it.

`generate` of transformers runs an answer to its end. Here the loop is ours, so that answers can begin and end while
others are under way, each with its own limits, and an abandoned one costs nothing more.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from finetune_api.panics import as_exception
from finetune_trainer.models.limits import context_of
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.serving.decoding import AnswerText, Sampler, Sampling
from finetune_trainer.tasks.adapters import plain
from finetune_trainer.tasks.answer_ends import answer_ends, declared_ends
from finetune_trainer.tasks.seq2seq import begin_of

FinishReason = Literal["stop", "length"]
_MOST_IN_TURNS = 4


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What to answer, and how."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """More of the answer's text; empty for a token that shows nothing yet."""

    text: str
    tokens: int
    """Generated so far, the one that ended the answer included."""
    finish: FinishReason | None = None
    """Set on the last piece."""

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.finish is not None


class Answer:
    """One request under way: what of its prompt is unread, how its tokens are drawn, and what ends it."""

    def __init__(self, request: GenerationRequest, *, model: TextModel) -> None:
        self.unread = list(request.prompt_ids)
        self.token = -1
        """The one that came last; the model has not read it yet."""
        self.longest = len(request.prompt_ids) + request.max_new_tokens
        """Tokens that prompt and answer may come to."""
        self._most = request.max_new_tokens
        self._ends = model.ends
        self._sampler = Sampler(request.sampling, device=model.model.device)
        self._text = AnswerText(model.tokenizer, stop=request.stop)
        self.tokens = 0
        """Generated so far."""

    def push(self, logits: torch.Tensor) -> Piece:
        """Draw the next token from logits of shape (vocabulary,)."""
        self.token = self._sampler.next_token(logits)
        self.tokens += 1
        if self.token in self._ends:
            return Piece(text=self._text.finish(), tokens=self.tokens, finish="stop")
        shown = self._text.push(self.token)
        if not self._text.stopped and self.tokens == self._most:
            shown += self._text.finish()
        finish: FinishReason | None = "length" if self.tokens == self._most else None
        return Piece(text=shown, tokens=self.tokens, finish="stop" if self._text.stopped else finish)


class Steps(Protocol):
    """A model's forward passes for one answer. Logits have shape (vocabulary,)."""

    @property
    def keeps_what_it_read(self) -> bool:
        """Whether keys and values are kept from token to token."""
        ...

    def begin(self, prompt_ids: Sequence[int]) -> torch.Tensor:
        """Logits of the first token."""
        ...

    def go_on(self, token: int) -> torch.Tensor:
        """Logits of the token after `token`."""
        ...


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A model that generates text."""

    model: Any
    tokenizer: Any
    two_parts: bool
    context: int | None
    """Tokens that prompt and answer may have together (with two parts, each of them); None: no limit known."""
    ends: frozenset[int]
    """The tokens that end an answer, as in the evaluation."""
    longest_prompt: int | None = None
    """Characters of a prompt beyond which it cannot fit, whatever they are; None: no limit known. To count the tokens
    of 10 MB takes seconds in which nobody else's prompt is read."""

    @classmethod
    def of(cls, *, model: Any, tokenizer: Any, two_parts: bool, limit: int | None = None) -> TextModel:
        """A loaded model. `limit`: tokens that its version was recorded to read."""
        known = context_of(model, tokenizer, generates=True)
        context = min((each for each in (known, limit) if each is not None), default=None)
        longest_token = max((len(token) for token in tokenizer.get_vocab()), default=1)
        longest_prompt = None if context is None else context * longest_token
        ends = answer_ends(tokenizer, declared_ends(model))
        return cls(
            model=model,
            tokenizer=tokenizer,
            two_parts=two_parts,
            context=context,
            ends=ends,
            longest_prompt=longest_prompt,
        )

    def room(self, prompt_length: int) -> int | None:
        """How many tokens an answer may have after a prompt; None: no limit known."""
        if self.context is None:
            return None
        return self.context - (0 if self.two_parts else prompt_length)

    def answer(self, request: GenerationRequest) -> Answer:
        """An answer that has not begun."""
        return Answer(request, model=self)


class InTurns:
    """Runs a text model on one answer after the other, a token each: right for whatever model."""

    kept_tokens = 0

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self._steps: dict[Answer, Steps] = {}

    def admits(self, work: Answer, *, under_way: Sequence[Answer]) -> bool:
        """A few: they share the machine, and each holds its keys and values."""
        return len(under_way) < _MOST_IN_TURNS

    def round(self, under_way: Sequence[Answer]) -> Iterator[tuple[Answer, Piece | Exception]]:
        """A token of each answer."""
        self._steps = {answer: self._steps.get(answer) or self._begin() for answer in under_way}
        for answer, steps in self._steps.items():
            try:
                logits = steps.go_on(answer.token) if not answer.unread else steps.begin(answer.unread)
                answer.unread = []
                yield answer, answer.push(logits)
            except BaseException as error:
                yield answer, as_exception(error)

    def _begin(self) -> Steps:
        return steps_of(self._model.model, two_parts=self._model.two_parts)


def steps_of(model: Any, *, two_parts: bool) -> Steps:
    """Those of an answer that has not begun."""
    return TwoPartSteps(model) if two_parts else CausalSteps(model)


def parameters_of(model: Any) -> frozenset[str]:
    """What the model's forward pass may be given."""
    return frozenset(inspect.signature(plain(model).forward).parameters)


class CausalSteps:
    """Prompt and answer are one sequence.

    Recurrent models (Mamba, RWKV, ...) each hand their state on in a way of their own; they read everything again for
    each token, which is slow and right.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # Logits of the prompt's other tokens are not needed: 4 bytes x tokens x vocabulary.
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters_of(model) else {}
        self._read: list[int] = []
        self._past: Any = None

    @property
    def keeps_what_it_read(self) -> bool:
        """Whether keys and values are kept from token to token."""
        return self._past is not None

    def begin(self, prompt_ids: Sequence[int]) -> torch.Tensor:
        """Logits of the first token."""
        return self._forward(prompt_ids)

    def go_on(self, token: int) -> torch.Tensor:
        """Logits of the token after `token`."""
        return self._forward([token])

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int]) -> torch.Tensor:
        self._read += ids
        tokens = torch.tensor([self._read if self._past is None else list(ids)], device=self._model.device)
        options = self._options if self._past is None else {**self._options, "past_key_values": self._past}
        output = self._model(input_ids=tokens, use_cache=True, **options)
        self._past = getattr(output, "past_key_values", None)
        logits: torch.Tensor = output.logits[0, -1]
        return logits


class TwoPartSteps:
    """The prompt is read once by the encoder; the answer grows in the decoder."""

    keeps_what_it_read = True

    def __init__(self, model: Any) -> None:
        self._model = plain(model)
        self._past: Any = None
        self._encoded: Any = None

    @torch.inference_mode()
    def begin(self, prompt_ids: Sequence[int]) -> torch.Tensor:
        """Logits of the first token."""
        tokens = torch.tensor([list(prompt_ids)], device=self._model.device)
        self._encoded = self._model.get_encoder()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return self.go_on(begin_of(self._model))

    @torch.inference_mode()
    def go_on(self, token: int) -> torch.Tensor:
        """Logits of the token after `token`."""
        tokens = torch.tensor([[token]], device=self._model.device)
        output = self._model(
            encoder_outputs=self._encoded, decoder_input_ids=tokens, past_key_values=self._past, use_cache=True
        )
        self._past = _kept(output)
        logits: torch.Tensor = output.logits[0, -1]
        return logits


def _kept(output: Any) -> Any:
    past = getattr(output, "past_key_values", None)
    if past is None:
        raise bad_configuration(
            "UnsupportedModel", "this model keeps no keys and values between tokens, so it cannot be served"
        )
    return past
