"""Supervised fine-tuning: the mean cross entropy over the targets of the whole batch, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finetune_trainer.tasks.encoding import Batch
from finetune_trainer.tasks.task import Task
from finetune_trainer.tasks.tokens import Tokens


class SupervisedLoss(nn.Module):
    """Forward gives the summed loss over a batch's targets."""

    def __init__(self, model: Any, *, task: Task) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: Batch) -> torch.Tensor:
        """Sum of cross entropies; shape ()."""
        return self._task.loss(self.model, batch)

    def weight(self, examples: Tokens, chosen: Sequence[int]) -> int:
        """The targets."""
        return int(examples.target_counts[chosen].sum())
