"""Task SequenceClassification: name a text's class. The head that does is trained with the model and belongs to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.shared_fields import Task as TaskName
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.rows import Content, RowFormat
from finetune_trainer.tasks.encoding import IGNORED, Batch, Encoded, padded_batch, text_tokens
from finetune_trainer.tasks.likelihood import class_log_probabilities
from finetune_trainer.tasks.scores import UNKNOWN_CLASS_PROBABILITY, ClassOutcome, TextOutcome, score_classes
from finetune_trainer.tasks.task import Asked, Decoding, Judged, ModelRun
from finetune_trainer.tasks.token_lengths import measure

_KEPT_CLASSES = 5


class SequenceClassification:
    """Texts with one class each."""

    name: ClassVar[TaskName] = "SequenceClassification"
    formats: ClassVar[tuple[RowFormat, ...]] = ("Labelled",)
    loader: ClassVar[str] = "AutoModelForSequenceClassification"
    adapter_type: ClassVar[str] = "SEQ_CLS"
    generates: ClassVar[bool] = False
    two_parts: ClassVar[bool] = False
    own_head: ClassVar[bool] = True
    greeting: ClassVar[Mapping[str, Any]] = {"input": "Hello"}
    outcome: ClassVar[type[TextOutcome | ClassOutcome]] = ClassOutcome

    def problem_of(self, kind: str, architectures: Sequence[str]) -> str | None:
        """Its kind must have a head for classes."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

        return None if kind in NAMES else f"a {kind} model cannot classify sequences"

    def options(self, labels: Sequence[str]) -> dict[str, Any]:
        """The classes, for a head of that size."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
            "problem_type": "single_label_classification",
            "ignore_mismatched_sizes": True,
        }

    def encode(self, example: Example, *, tokenizer: Any, max_length: int, labels: Sequence[str] | None) -> Encoded:
        """A text and the number of its class. Raises ValueError for a class that is not among `labels`."""
        ids, truncated = text_tokens(example.text or "", tokenizer=tokenizer, max_length=max_length)
        label = list(labels or ()).index(example.label or "")
        return Encoded(ids=tuple(ids), targets=(False,) * len(ids), label=label, truncated=truncated)

    def check_row(self, content: Content, *, tokenizer: Any) -> None:
        """Any text will do."""

    def check_examples(self, examples: Sequence[Example], *, tokenizer: Any) -> None:
        """Any texts will do."""

    def with_reference(self, example: Example, *, tokenizer: Any) -> Example:
        """As it is: the class."""
        return example

    def lengths(self, examples: Sequence[Example], *, tokenizer: Any) -> list[int]:
        """With marks."""
        return measure(examples, tokenizer=tokenizer)

    def batch(self, examples: Sequence[Encoded], *, pad_id: int) -> Batch:
        """With the class as the label of each."""
        classes = torch.tensor([IGNORED if example.label is None else example.label for example in examples])
        return replace(padded_batch(examples, pad_id=pad_id), labels=classes)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Over the examples."""
        return cross_entropy(self.logits(model, batch).float(), batch.labels, ignore_index=IGNORED, reduction="sum")

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Of the classes; shape (B, classes)."""
        logits: torch.Tensor = model(**batch.inputs).logits
        return logits

    def ask(self, asked: Asked, examples: Sequence[Example], *, decoding: Decoding) -> ModelRun:
        """The probabilities of the classes."""
        # The right class may be one that this model does not know; its number is not needed here.
        encoded = [
            self.encode(each, tokenizer=asked.tokenizer, max_length=decoding.max_length, labels=(each.label or "",))
            for each in examples
        ]
        rows = class_log_probabilities(
            asked.model,
            [example.ids for example in encoded],
            pad_id=asked.pad_id,
            batch_size=decoding.batch_size,
            what=f"{asked.who}: classes",
        )
        outcomes = [
            _outcome(row, labels=asked.labels, gold=example.label or "")
            for row, example in zip(rows, examples, strict=True)
        ]
        return ModelRun(outcomes=outcomes, cut_examples=sum(example.truncated for example in encoded))

    def judge(
        self,
        candidate: ModelRun,
        baseline: ModelRun,
        *,
        examples: Sequence[Example],
        metrics: Sequence[EvaluationMetric],
    ) -> Judged:
        """Over the classes that either model or the data know."""
        gold = [example.label or "" for example in examples]
        runs = [[each for each in run.outcomes if isinstance(each, ClassOutcome)] for run in (candidate, baseline)]
        labels = sorted({*gold, *(outcome.predicted for outcomes in runs for outcome in outcomes)})
        ours, theirs = (score_classes(outcomes, gold=gold, labels=labels) for outcomes in runs)
        return Judged(candidate=ours, baseline=theirs, labels=labels)


def _outcome(log_probabilities: Sequence[float], *, labels: Sequence[str], gold: str) -> ClassOutcome:
    known = dict(zip(labels, log_probabilities, strict=True))
    ranked = sorted(known, key=lambda label: known[label], reverse=True)
    return ClassOutcome(
        predicted=ranked[0],
        nll=-known[gold] if gold in known else -math.log(UNKNOWN_CLASS_PROBABILITY),
        probabilities={label: float(f"{math.exp(known[label]):.4g}") for label in ranked[:_KEPT_CLASSES]},
    )
