"""Supervised fine-tuning: the mean cross entropy over the targets of the whole batch, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer.tasks.encoding import Batch
from finetune_trainer.tasks.task import Task
from finetune_trainer.tasks.tokens import Tokens


class SupervisedLoss:
    """The summed loss over a batch's targets."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        """Sum of cross entropies; shape ()."""
        return self._task.loss(model, batch)

    def weight(self, examples: Tokens, chosen: Sequence[int]) -> int:
        """The targets."""
        return int(examples.target_counts[chosen].sum())
