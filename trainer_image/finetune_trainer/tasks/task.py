"""What a task is: the one interface behind which chats, texts and classes differ.

A task is chosen once at the start of a stage (`tasks.choose.task_of`); nothing after that asks which one it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.shared_fields import Task as TaskName
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.rows import Content, RowFormat
from finetune_trainer.tasks.encoding import Batch, Encoded
from finetune_trainer.tasks.scores import ClassOutcome, Outcome, Scores, TextOutcome


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the models are asked; the same for both."""

    task: TaskName
    max_length: int
    """Tokens after which an example is cut."""
    max_new_tokens: int
    batch_size: int
    generate: bool
    """Whether answers are needed; likelihoods alone cost far less."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model on its device, in evaluation mode, and what is known of it."""

    model: Any
    tokenizer: Any
    labels: Sequence[str]
    """Of a classifier, in the order of its outputs."""
    context: int | None
    """Tokens that it reads at once; None: no limit known."""
    pad_id: int
    who: str
    """Its name in the log."""


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What one model did with all examples."""

    outcomes: Sequence[Outcome]
    """In the order of the examples."""
    cut_examples: int = 0
    """Longer than `max_length`: their end was not scored."""
    cut_prompts: int = 0
    """Too long for the model with its answer: their beginning was left out."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores of two models on the same examples."""

    candidate: Scores
    baseline: Scores
    labels: Sequence[str] = ()
    """The classes that either of them or the data know; none where answers are no classes."""


class Task(Protocol):
    """From rows to what a model learns, and from a model to scores."""

    name: ClassVar[TaskName]
    formats: ClassVar[tuple[RowFormat, ...]]
    """What it can learn from, in the order in which `Auto` tries them."""
    loader: ClassVar[str]
    """The class of `transformers` that loads its models."""
    adapter_type: ClassVar[str]
    """`task_type` of a PEFT configuration."""
    generates: ClassVar[bool]
    """Whether the model writes on; otherwise it reads a text and answers at once."""
    two_parts: ClassVar[bool]
    """Whether the model reads with one part and writes with another, so that a prompt takes no room of the answer's."""
    own_head: ClassVar[bool]
    """Whether a base may lack the task's head, whose numbers are random until it is trained and saved with it."""
    greeting: ClassVar[Mapping[str, Any]]
    """A first request, at the path that is its own (`finetune_api.tasks`)."""
    outcome: ClassVar[type[TextOutcome | ClassOutcome]]

    def problem_of(self, kind: str, architectures: Sequence[str]) -> str | None:
        """Why a base model (its `model_type` and `architectures`) cannot do it, in words for the user; None: it can."""

    def options(self, labels: Sequence[str]) -> dict[str, Any]:
        """What the loader is given beyond the folder. `labels`: the classes in the order of the outputs."""

    def encode(self, example: Example, *, tokenizer: Any, max_length: int, labels: Sequence[str] | None) -> Encoded:
        """An example as the model sees it in training, cut to `max_length` tokens."""

    def check_row(self, content: Content, *, tokenizer: Any) -> None:
        """Raises Problem for a row that a model with this tokenizer cannot learn; StageError (78) for its template."""

    def check_examples(self, examples: Sequence[Example], *, tokenizer: Any) -> None:
        """Raises StageError (78) where the tokenizer, or its template, is not made for such examples."""

    def with_reference(self, example: Example, *, tokenizer: Any) -> Example:
        """The example with what its answer is compared with, where no model could write it as it is in the data."""

    def lengths(self, examples: Sequence[Example], *, tokenizer: Any) -> list[int]:
        """Tokens of each, as far as `max_length` counts them."""

    def batch(self, examples: Sequence[Encoded], *, pad_id: int) -> Batch:
        """Rows filled up on the right, with their labels."""

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """What a model finds likely; shape (B, T, V) for each of the batch's labels, or (B, classes)."""

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Sum of cross entropies over a batch's targets, in nats, fp32; shape ()."""

    def ask(self, asked: Asked, examples: Sequence[Example], *, decoding: Decoding) -> ModelRun:
        """A model's outcomes on held-out examples."""

    def judge(
        self,
        candidate: ModelRun,
        baseline: ModelRun,
        *,
        examples: Sequence[Example],
        metrics: Sequence[EvaluationMetric],
    ) -> Judged:
        """The scores of both. Raises StageError for metrics that mean nothing for these two."""
