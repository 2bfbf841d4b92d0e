"""Answers, one token a step: a prefill of the prompt, then each new token with the keys and values of those before it.

`generate` of transformers runs an answer to its end. Here the loop is ours, so that several answers can take turns and
an abandoned one costs nothing more.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from finetune_api.shared_fields import Task
from finetune_trainer.answer_ends import answer_ends, declared_ends
from finetune_trainer.errors import bad_configuration
from finetune_trainer.limits import context_of
from finetune_trainer.serving.decoding import AnswerText, Sampler, Sampling

FinishReason = Literal["stop", "length"]


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


class _Steps(Protocol):
    """A model's forward passes for one answer. Logits have shape (vocabulary,)."""

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
    task: Task
    context: int | None
    """Tokens that prompt and answer may have together (Seq2Seq: that the prompt may have); None: no limit known."""
    ends: frozenset[int]
    """The tokens that end an answer, as in the evaluation."""
    longest_prompt: int | None = None
    """Characters of a prompt beyond which it cannot fit, whatever they are; None: no limit known. To count the tokens
    of 10 MB takes seconds in which nobody else's prompt is read."""

    @classmethod
    def of(cls, *, model: Any, tokenizer: Any, task: Task, limit: int | None = None) -> TextModel:
        """A loaded model. `limit`: tokens that its version was recorded to read."""
        known = context_of(model, tokenizer, task=task)
        context = min((each for each in (known, limit) if each is not None), default=None)
        longest_token = max((len(token) for token in tokenizer.get_vocab()), default=1)
        longest_prompt = None if context is None else context * longest_token
        ends = answer_ends(tokenizer, declared_ends(model))
        return cls(
            model=model, tokenizer=tokenizer, task=task, context=context, ends=ends, longest_prompt=longest_prompt
        )

    def room(self, prompt_length: int) -> int | None:
        """How many tokens an answer may have after a prompt; None: no limit known."""
        if self.context is None:
            return None
        return self.context - (0 if self.task == "Seq2Seq" else prompt_length)

    def answer(self, request: GenerationRequest) -> Iterator[Piece]:
        """The answer, a token a step."""
        steps: _Steps = _Seq2SeqSteps(self.model) if self.task == "Seq2Seq" else CausalSteps(self.model)
        sampler = Sampler(request.sampling, device=self.model.device)
        text = AnswerText(self.tokenizer, stop=request.stop)
        logits = steps.begin(request.prompt_ids)
        for count in range(1, request.max_new_tokens + 1):
            token = sampler.next_token(logits)
            if token in self.ends:
                yield Piece(text=text.finish(), tokens=count, finish="stop")
                return
            shown = text.push(token)
            if text.stopped:
                yield Piece(text=shown, tokens=count, finish="stop")
                return
            if count == request.max_new_tokens:
                rest = text.finish()
                yield Piece(text=shown + rest, tokens=count, finish="stop" if text.stopped else "length")
                return
            yield Piece(text=shown, tokens=count)
            logits = steps.go_on(token)


class CausalSteps:
    """Prompt and answer are one sequence.

    Recurrent models (Mamba, RWKV, ...) each hand their state on in a way of their own; they read everything again for
    each token, which is slow and right.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        plain = model.get_base_model() if hasattr(model, "peft_config") else model
        # Logits of the prompt's other tokens are not needed: 4 bytes x tokens x vocabulary.
        known = inspect.signature(plain.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
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


class _Seq2SeqSteps:
    """The prompt is read once by the encoder; the answer grows in the decoder."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._past: Any = None
        self._encoded: Any = None

    @torch.inference_mode()
    def begin(self, prompt_ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor([list(prompt_ids)], device=self._model.device)
        self._encoded = self._model.get_encoder()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        config = self._model.config
        start = getattr(config, "decoder_start_token_id", None)
        return self.go_on(int(config.pad_token_id if start is None else start))

    @torch.inference_mode()
    def go_on(self, token: int) -> torch.Tensor:
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
            "UnsupportedModel", "this model keeps no keys and values between tokens; serve it with the VLLM runtime"
        )
    return past
