"""One process has the whole model and all of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from finetune_trainer.process.gang import Gang


class Single:
    """Nothing to share; and what all strategies with whole tensors in each process do alike."""

    def __init__(self, gang: Gang) -> None:
        self._gang = gang

    def prepare(self, objective: nn.Module) -> nn.Module:
        """The objective as it is."""
        return objective

    def active(self) -> bool:
        """Whether it is alone."""
        return self._gang.world == 1

    def no_sync(self) -> AbstractContextManager[Any]:
        """Nothing is exchanged."""
        return nullcontext()

    def backward(self, loss: torch.Tensor, *, weight: int) -> None:
        """As it is."""
        (loss * (1 / weight)).backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: Iterable[nn.Parameter], *, max_norm: float) -> None:
        """Gradients are whole."""
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's own."""
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """They are whole."""
        return dict(tensors)

    def part(self, whole: torch.Tensor, *, of: torch.Tensor) -> torch.Tensor:
        """All of it."""
        return whole
