"""What an objective is, and the one that there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from finetune_trainer.tasks.encoding import Batch
from finetune_trainer.tasks.task import Task
from finetune_trainer.tasks.tokens import Tokens
from finetune_trainer.training.objectives.sft import SupervisedLoss


class Objective(Protocol):
    """A loss that is summed over batches and processes and divided by its weight."""

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        """The summed loss of a batch, fp32; shape (). Zero for one without targets."""

    def weight(self, examples: Tokens, chosen: Sequence[int]) -> int:
        """By what the sum over the chosen examples, those of all processes, is divided."""


def objective_of(task: Task) -> SupervisedLoss:
    """Of all runs."""
    return SupervisedLoss(task)
