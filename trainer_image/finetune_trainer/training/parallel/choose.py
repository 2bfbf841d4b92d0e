"""What a parallel strategy is, and the strategies by name: a new one is a file beside this one and a row here.

All processes call each of these at the same point, and run equally many batches (`batches.Batches`): under some
strategies a forward pass already is an exchange.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from finetune_trainer.process.gang import Gang
from finetune_trainer.training.parallel.ddp import Replicated
from finetune_trainer.training.parallel.single import Single


class Parallel(Protocol):
    """How the processes of a gang share one model."""

    def prepare(self, objective: nn.Module) -> nn.Module:
        """What batches are trained through. Before the optimiser is made."""

    def active(self) -> bool:
        """Whether the prepared module really is under this strategy: some fall back in silence to none at all."""

    def no_sync(self) -> AbstractContextManager[Any]:
        """Around a forward and backward pass after which another follows before the step."""

    def backward(self, loss: torch.Tensor, *, weight: int) -> None:
        """Add up gradients of `loss / weight`, summed over the processes: all of them after the step's last pass."""

    def clip(self, parameters: Iterable[nn.Parameter], *, max_norm: float) -> None:
        """Shorten the gradient, taken as one vector over all parameters."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change the parameters and forget the gradients."""

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters or moments as whole tensors, for whoever saves or looks at them."""

    def part(self, whole: torch.Tensor, *, of: torch.Tensor) -> torch.Tensor:
        """What this process holds of a whole tensor that has the shape of the parameter `of`."""


_STRATEGIES = {"DDP": Replicated}


def parallel_of(strategy: str, *, gang: Gang) -> Parallel:
    """The strategy of an order; a process that is alone needs none."""
    return Single(gang) if gang.world == 1 else _STRATEGIES[strategy](gang)
