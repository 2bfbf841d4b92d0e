"""Task Seq2Seq: read a text and write another, by models of two parts (T5, BART and their like).

An example's tokens are the prompt's with their end mark, then the answer's with its own, which are the targets:

    ids      translate: one </s> eins </s>
    targets  .          .   .    x    x

The first part reads the prompt. The second one begins with a token that the model names (`begin_of`) and reads the
answer, a token behind: neither takes room of the other, so each may have `training.maxLength` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from finetune_api.shared_fields import Task as TaskName
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.fields import Problem, short
from finetune_trainer.data.rows import Content, RowFormat
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.tasks.adapters import plain
from finetune_trainer.tasks.answer_ends import answer_ends, answer_text, declared_ends
from finetune_trainer.tasks.batching import pad, run_in_batches
from finetune_trainer.tasks.causal import CausalLM
from finetune_trainer.tasks.chat_template import mark_in
from finetune_trainer.tasks.encoding import IGNORED, Batch, Encoded
from finetune_trainer.tasks.generate import generate_answers
from finetune_trainer.tasks.likelihood import LOGIT_BYTES
from finetune_trainer.tasks.task import Asked, Decoding


class Seq2Seq(CausalLM):
    """Prompts and what is to be written for them."""

    name: ClassVar[TaskName] = "Seq2Seq"
    formats: ClassVar[tuple[RowFormat, ...]] = ("PromptCompletion",)
    loader: ClassVar[str] = "AutoModelForSeq2SeqLM"
    adapter_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    two_parts: ClassVar[bool] = True

    def problem_of(self, kind: str, architectures: Sequence[str]) -> str | None:
        """It must have two parts, and write."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as NAMES

        if kind in NAMES and set(architectures) & set(NAMES.values()):
            return None
        named = ", ".join(architectures) or kind
        return f"{named} does not read one text to write another, which task {self.name} needs; use a T5 or BART model"

    def check_row(self, content: Content, *, tokenizer: Any) -> None:
        """There is no template for anything but a prompt, and the answer must be one that the tokenizer can write."""
        if tokenizer.eos_token_id is None:
            raise bad_configuration(
                "NoEndOfAnswer",
                "the base model's tokenizer has no token that ends an answer, so the model would never stop; set its"
                " eos_token",
            )
        asked, answer = (content.messages or ())[0], (content.messages or ())[-1]
        for field, there in (("system", asked.role == "system"), ("tools", content.tools)):
            if there:
                raise Problem(field=field, reason='is not read for task Seq2Seq; write it into "prompt"')
        mark = mark_in(answer.content, tokenizer)
        if mark is not None:
            raise Problem(field="completion", reason=f"spells {mark!r}, a mark of the base model; remove it")
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in _written(answer.content, tokenizer):
            raise Problem(
                field="completion",
                reason="has characters that the base model's tokenizer does not know and so cannot write: it would be"
                f" read back as {short(self._read_back(answer.content, tokenizer))}; write them otherwise, or use"
                " another base model",
            )

    def with_reference(self, example: Example, *, tokenizer: Any) -> Example:
        """With the answer as it is read back: many tokenizers of such models write line breaks as blanks."""
        answer = (example.messages or ())[-1].content.strip()
        found = self._read_back(answer, tokenizer)
        return example if found == answer else replace(example, reference=found)

    @staticmethod
    def _read_back(answer: str, tokenizer: Any) -> str:
        return answer_text(_written(answer, tokenizer), tokenizer).strip()

    def lengths(self, examples: Sequence[Example], *, tokenizer: Any) -> list[int]:
        """Of the longer part: what exceeds a limit is cut."""
        parts = [_texts(example) for example in examples]
        return [max(len(tokenizer(prompt)["input_ids"]), len(_written(answer, tokenizer))) for prompt, answer in parts]

    def encode(
        self, example: Example, *, tokenizer: Any, max_length: int, labels: Sequence[str] | None = None
    ) -> Encoded:
        """A prompt, whose mark stays where it is cut, and its answer."""
        prompt, answer = _texts(example)
        read, written = list(tokenizer(prompt)["input_ids"]), _written(answer, tokenizer)
        truncated = max(len(read), len(written)) > max_length
        if len(read) > max_length:
            read = list(tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"])
        written = written[:max_length]
        targets = (*[False] * len(read), *[True] * len(written))
        return Encoded(ids=(*read, *written), targets=targets, truncated=truncated)

    def batch(self, examples: Sequence[Encoded], *, pad_id: int) -> Batch:
        """Prompts, and answers as labels, each filled up on the right."""
        prompts = [_prompt(example) for example in examples]
        return Batch(
            input_ids=pad(prompts, value=pad_id),
            attention_mask=pad([[1] * len(prompt) for prompt in prompts], value=0),
            position_ids=None,
            labels=pad(
                [each.ids[len(prompt) :] for each, prompt in zip(examples, prompts, strict=True)], value=IGNORED
            ),
            real_tokens=sum(len(example.ids) for example in examples),
        )

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Of each token of the answers; shape (B, T, V)."""
        begin = batch.labels.new_full((len(batch.labels), 1), begin_of(model))
        before = torch.cat([begin, batch.labels[:, :-1]], dim=1)  # (B, T)
        # Behind an answer comes what no token of it sees.
        before = before.masked_fill(before == IGNORED, begin_of(model))
        logits: torch.Tensor = model(**batch.inputs, decoder_input_ids=before, use_cache=False).logits
        return logits

    def answers(self, asked: Asked, examples: Sequence[Example], *, decoding: Decoding) -> tuple[list[str], int]:
        """To prompts that are cut as in training (and counted there), no longer than the answers that were learned."""
        cut = [self.encode(each, tokenizer=asked.tokenizer, max_length=decoding.max_length) for each in examples]
        found = generate_answers(
            asked.model,
            [_prompt(example) for example in cut],
            end_ids=answer_ends(asked.tokenizer, declared_ends(asked.model)),
            pad_id=asked.pad_id,
            max_new_tokens=min(decoding.max_new_tokens, decoding.max_length),
            batch_size=decoding.batch_size,
            begin=begin_of(asked.model),
            what=f"{asked.who}: answers",
        )
        return [answer_text(answer, asked.tokenizer) for answer in found], 0

    def likelihoods(self, asked: Asked, encoded: Sequence[Encoded], *, batch_size: int) -> list[tuple[float, int]]:
        """Logits are computed where answers are, for as many examples at once as memory allows."""
        vocabulary = plain(asked.model).config.get_text_config().vocab_size

        def run(examples: Sequence[Encoded]) -> list[tuple[float, int]]:
            rows = max(1, LOGIT_BYTES // (4 * vocabulary * max(example.target_count for example in examples)))
            return [each for first in range(0, len(examples), rows) for each in some(examples[first : first + rows])]

        @torch.inference_mode()
        def some(examples: Sequence[Encoded]) -> list[tuple[float, int]]:
            batch = self.batch(examples, pad_id=asked.pad_id).to(asked.model.device)
            logits = self.logits(asked.model, batch).float().transpose(1, 2)  # (B, V, T)
            losses = cross_entropy(logits, batch.labels, ignore_index=IGNORED, reduction="none")
            sums = losses.double().sum(dim=1).tolist()
            return [(nll, example.target_count) for nll, example in zip(sums, examples, strict=True)]

        what = f"{asked.who}: loss"
        return run_in_batches(
            encoded, length=lambda example: len(example.ids), batch_size=batch_size, run=run, what=what
        )


def begin_of(model: Any) -> int:
    """The token that the second part begins with; where the model names none, the one that fills texts up."""
    config = plain(model).config
    named = (getattr(config, "decoder_start_token_id", None), declared_ends(model).decoder_start_token_id)
    return next((int(each) for each in (*named, config.pad_token_id) if each is not None), 0)


def _texts(example: Example) -> tuple[str, str]:
    asked, answer = example.messages or ()
    return asked.content, answer.content


def _written(answer: str, tokenizer: Any) -> list[int]:
    """An answer's tokens with their end."""
    ids = list(tokenizer(text_target=answer)["input_ids"])
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _prompt(example: Encoded) -> tuple[int, ...]:
    return example.ids[: example.targets.index(True)]
