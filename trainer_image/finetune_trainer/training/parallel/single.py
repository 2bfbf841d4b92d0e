"""One process has the whole model and all of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from finetune_trainer.process.gang import Gang
from finetune_trainer.training.sharing import ParallelSettings, Root


class Single:
    """Nothing to share; and what all strategies do alike, but where they say otherwise."""

    hands_out: bool = False

    def __init__(self, gang: Gang, settings: ParallelSettings) -> None:
        self._gang = gang
        self._settings = settings
        self._optimizer: torch.optim.Optimizer
        self._norm: torch.Tensor

    def prepare(self, root: Root, *, optimizer: Callable[[], torch.optim.Optimizer]) -> nn.Module:
        """As it is, on the device."""
        root.to(self._gang.device)
        self._optimizer = optimizer()
        return root

    def active(self) -> bool:
        """Whether it is alone."""
        return self._gang.world == 1

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Nothing is exchanged."""
        return nullcontext()

    def backward(self, loss: torch.Tensor, *, weight: int) -> None:
        """As it is."""
        (loss * (1 / weight)).backward()  # type: ignore[no-untyped-call]

    def step(self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, max_norm: float) -> None:
        """The optimiser's own."""
        self._norm = torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def grad_norm(self) -> float | None:
        """Not waited for before it is asked for."""
        return float(self._whole(self._norm))

    def weights(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """They are whole."""
        for name, tensor in tensors.items():
            yield name, self._whole(tensor).detach()

    def moments(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, torch.Tensor]]:
        """The optimiser's own."""
        for name, parameter in parameters.items():
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                yield f"{name}/{moment}", self._whole(torch.as_tensor(value))

    def put_weight(self, parameter: nn.Parameter, whole: torch.Tensor) -> None:
        """All of it."""
        with torch.no_grad():
            parameter.copy_(self._part(whole, of=parameter))

    def put_moment(self, parameter: nn.Parameter, moment: str, whole: torch.Tensor) -> None:
        """All of it."""
        mine = whole if moment == "step" else self._part(whole, of=parameter)
        self._optimizer.state[parameter][moment] = mine.to(parameter.device)

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def _part(self, whole: torch.Tensor, *, of: torch.Tensor) -> torch.Tensor:
        return whole
