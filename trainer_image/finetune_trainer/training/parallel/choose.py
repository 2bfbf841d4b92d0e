"""What a parallel strategy is, and the strategies by name: a new one is a file beside this one and a row here.

All processes call each of these at the same point, and run equally many batches (`batches.Batches`): under some
strategies a forward pass already is an exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from finetune_api.tasks import UsedStrategy
from finetune_trainer.process.gang import Gang
from finetune_trainer.training.parallel.ddp import Replicated
from finetune_trainer.training.parallel.fsdp2 import FullySharded
from finetune_trainer.training.parallel.single import Single
from finetune_trainer.training.parallel.zero import Zero
from finetune_trainer.training.sharing import ParallelSettings, Root


class Parallel(Protocol):
    """How the processes of a gang share one model."""

    hands_out: bool
    """Whether `prepare` takes a model of which the first process alone has the weights."""

    def prepare(self, root: Root, *, optimizer: Callable[[], torch.optim.Optimizer]) -> nn.Module:
        """What the model is asked through from now on. `optimizer` makes it, of the parameters as they are then."""

    def active(self) -> bool:
        """Whether the strategy is in force: some libraries fall back in silence to none at all."""

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around a forward and backward pass. `last`: of the step."""

    def backward(self, loss: torch.Tensor, *, weight: int) -> None:
        """Add up gradients of `loss / weight`, summed over the processes: all of them after the step's last pass."""

    def step(self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, max_norm: float) -> None:
        """Shorten the gradient, taken as one vector, to `max_norm`; change the parameters; forget the gradients."""

    def grad_norm(self) -> float | None:
        """The gradient's norm at the last step, before it was shortened; None: not known. All ask."""

    def weights(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters as whole tensors, one after another, in each process, on any device. All go through to the end."""

    def moments(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, torch.Tensor]]:
        """The optimiser's, the same way: `<parameter>/exp_avg`, `<parameter>/exp_avg_sq`, `<parameter>/step`."""

    def put_weight(self, parameter: nn.Parameter, whole: torch.Tensor) -> None:
        """Take this process's part of a whole tensor, which each of them has."""

    def put_moment(self, parameter: nn.Parameter, moment: str, whole: torch.Tensor) -> None:
        """The same of one of the optimiser's."""


_STRATEGIES: Mapping[UsedStrategy, Callable[[Gang, ParallelSettings], Parallel]] = {
    "DDP": Replicated,
    "FSDP2": FullySharded,
    "DeepSpeedZeRO1": partial(Zero, stage=1),
    "DeepSpeedZeRO2": partial(Zero, stage=2),
    "DeepSpeedZeRO3": partial(Zero, stage=3),
}


def parallel_of(strategy: UsedStrategy, *, gang: Gang, settings: ParallelSettings) -> Parallel:
    """The strategy of an order. Copies of the whole model are of no use to a process that is alone."""
    if strategy == "DDP" and gang.world == 1:
        return Single(gang, settings)
    return _STRATEGIES[strategy](gang, settings)


def halves_base(strategy: UsedStrategy) -> bool:
    """Whether weights that stay as they are may be in bf16 while others are in fp32: DeepSpeed takes one type only."""
    return not strategy.startswith("DeepSpeed")


def meets(strategy: UsedStrategy) -> bool:
    """Whether it is one that exchanges even where a process is alone."""
    return strategy != "DDP"
