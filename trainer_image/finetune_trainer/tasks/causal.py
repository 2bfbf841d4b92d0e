"""Task CausalLM: go on with a text. Every token but the first is learned, and the end of the text as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.model_shape import PLAIN_OUTPUT
from finetune_api.shared_fields import Task as TaskName
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.rows import Content, RowFormat
from finetune_trainer.process.errors import bad_configuration, bad_data
from finetune_trainer.tasks.adapters import plain
from finetune_trainer.tasks.answer_ends import answer_ends, answer_text, declared_ends
from finetune_trainer.tasks.encoding import IGNORED, Batch, Encoded, cut, padded_batch, prompt_ids
from finetune_trainer.tasks.generate import generate_answers
from finetune_trainer.tasks.likelihood import token_likelihoods
from finetune_trainer.tasks.output_layer import OutputLayer
from finetune_trainer.tasks.packed_rows import packed
from finetune_trainer.tasks.scores import ClassOutcome, TextOutcome, score_texts
from finetune_trainer.tasks.task import Asked, Decoding, Judged, ModelRun
from finetune_trainer.tasks.token_lengths import measure


class CausalLM:
    """Plain texts; and what all tasks whose models write share."""

    name: ClassVar[TaskName] = "CausalLM"
    formats: ClassVar[tuple[RowFormat, ...]] = ("Text",)
    loader: ClassVar[str] = "AutoModelForCausalLM"
    adapter_type: ClassVar[str] = "CAUSAL_LM"
    generates: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    own_head: ClassVar[bool] = False
    greeting: ClassVar[Mapping[str, Any]] = {"prompt": "Hello"}
    outcome: ClassVar[type[TextOutcome | ClassOutcome]] = TextOutcome

    def problem_of(self, kind: str, architectures: Sequence[str]) -> str | None:
        """It must write text as it is."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

        if kind in NAMES and set(architectures) & set(NAMES.values()):
            return None
        return (
            f"{', '.join(architectures) or kind} does not generate text, which task {self.name} needs; use a causal"
            " language model, or another task: SequenceClassification, or Seq2Seq for T5, BART and their like"
        )

    def options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def encode(
        self, example: Example, *, tokenizer: Any, max_length: int, labels: Sequence[str] | None = None
    ) -> Encoded:
        """A plain text."""
        ids = list(tokenizer(example.text or "")["input_ids"])
        if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
            ids.append(tokenizer.eos_token_id)
        return cut(ids, [index > 0 for index in range(len(ids))], max_length)

    def check_row(self, content: Content, *, tokenizer: Any) -> None:
        """Any text will do."""

    def check_examples(self, examples: Sequence[Example], *, tokenizer: Any) -> None:
        """Any texts will do."""

    def with_reference(self, example: Example, *, tokenizer: Any) -> Example:
        """As it is."""
        return example

    def lengths(self, examples: Sequence[Example], *, tokenizer: Any) -> list[int]:
        """With marks and template."""
        return measure(examples, tokenizer=tokenizer)

    def batch(self, examples: Sequence[Encoded], *, pad_id: int) -> Batch:
        """With the token that follows as the label of each."""
        return padded_batch(examples, pad_id=pad_id)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Over the next tokens that are targets."""
        inner = plain(model)
        # A prompt of 100 tokens with an answer of 3 costs 3 rows of logits instead of 103.
        output = OutputLayer.of(inner) if inner.config.model_type in PLAIN_OUTPUT else None
        if output is not None:
            hidden = _asked(inner.get_decoder(), batch).last_hidden_state  # (B, T, d)
            summed: torch.Tensor = output(hidden.flatten(0, 1)[batch.places], batch.labels.flatten()[batch.places])
            return summed
        logits = self.logits(model, batch)
        return cross_entropy(
            logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Of the token that follows each; shape (B, T, V)."""
        logits: torch.Tensor = _asked(model, batch).logits
        return logits

    def ask(self, asked: Asked, examples: Sequence[Example], *, decoding: Decoding) -> ModelRun:
        """How likely the model finds what is right and, where that is wanted, what it answers."""
        encoded = [self.encode(each, tokenizer=asked.tokenizer, max_length=decoding.max_length) for each in examples]
        likelihoods = self.likelihoods(asked, encoded, batch_size=decoding.batch_size)
        answers: Sequence[str | None] = [None] * len(examples)
        cut_prompts = 0
        if decoding.generate:
            answers, cut_prompts = self.answers(asked, examples, decoding=decoding)
        return ModelRun(
            outcomes=[
                TextOutcome(nll=nll, tokens=tokens, answer=answer)
                for (nll, tokens), answer in zip(likelihoods, answers, strict=True)
            ],
            cut_examples=sum(example.truncated for example in encoded),
            cut_prompts=cut_prompts,
        )

    def likelihoods(self, asked: Asked, encoded: Sequence[Encoded], *, batch_size: int) -> list[tuple[float, int]]:
        """Of each example's targets (summed negative log likelihood in nats), and their number."""
        return token_likelihoods(asked.model, encoded, batch_size=batch_size, what=f"{asked.who}: loss")

    def answers(self, asked: Asked, examples: Sequence[Example], *, decoding: Decoding) -> tuple[list[str], int]:
        """Each example's answer, and how many prompts had to be cut."""
        tokenizer, context = asked.tokenizer, asked.context
        room = 1 << 62 if context is None else max(1, context - decoding.max_new_tokens)
        prompts = [prompt_ids(example.messages or (), tokenizer=tokenizer, tools=example.tools) for example in examples]
        answers = generate_answers(
            asked.model,
            # The end of a prompt holds the question.
            [prompt[-room:] for prompt in prompts],
            end_ids=answer_ends(tokenizer, declared_ends(asked.model)),
            pad_id=asked.pad_id,
            max_new_tokens=decoding.max_new_tokens,
            batch_size=decoding.batch_size,
            what=f"{asked.who}: answers",
        )
        return [answer_text(answer, tokenizer) for answer in answers], sum(len(prompt) > room for prompt in prompts)

    def judge(
        self,
        candidate: ModelRun,
        baseline: ModelRun,
        *,
        examples: Sequence[Example],
        metrics: Sequence[EvaluationMetric],
    ) -> Judged:
        """Loss and answers."""
        runs = [[each for each in run.outcomes if isinstance(each, TextOutcome)] for run in (candidate, baseline)]
        _check_tokens(*runs, metrics=metrics)
        references = [example.right_answer for example in examples]
        wanted = {metric.name for metric in metrics}
        ours, theirs = (score_texts(outcomes, references=references, wanted=wanted) for outcomes in runs)
        return Judged(candidate=ours, baseline=theirs)


def _asked(model: Any, batch: Batch) -> Any:
    with packed(batch.lengths):
        return model(**batch.inputs, use_cache=False)


def _check_tokens(
    candidate: Sequence[TextOutcome], baseline: Sequence[TextOutcome], *, metrics: Sequence[EvaluationMetric]
) -> None:
    """A loss per token means something only where both models cut the text into the same tokens."""
    if not sum(outcome.tokens for outcome in candidate):
        raise bad_data("NothingToScore", "training.maxLength: no held-out example has a token of its answer within it")
    judged = [metric.name for metric in metrics if metric.name in ("loss", "perplexity") and not metric.report]
    if judged and any(one.tokens != two.tokens for one, two in zip(candidate, baseline, strict=True)):
        raise bad_configuration(
            "TokenizersDiffer",
            f"evaluation.metrics: {', '.join(judged)} count per token, but candidate and baseline have different"
            " tokenizers or chat templates; judge the answers (exact_match, token_f1, rouge_l, bleu) instead, or"
            " report the loss only",
        )
