"""DistributedDataParallel: each process has the whole model and a share of the batch; gradients are exchanged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.training.parallel.single import Single
from finetune_trainer.training.sharing import Root


class Replicated(Single):
    """Gradients are averaged with the step's last pass."""

    def prepare(self, root: Root, *, optimizer: Callable[[], torch.optim.Optimizer]) -> nn.Module:
        """The root, wrapped."""
        super().prepare(root, optimizer=optimizer)
        devices = [self._gang.device] if self._gang.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(
            root,
            device_ids=devices,
            gradient_as_bucket_view=True,  # else what is exchanged is a copy: 4 bytes more for each parameter
            find_unused_parameters=True,  # of some models a part is asked never, or not by each text
        )
        return self._wrapped

    def active(self) -> bool:
        """Whether there are others with which it exchanges."""
        return torch.distributed.get_world_size(self._wrapped.process_group) == self._gang.world > 1

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients stay here until the last."""
        return nullcontext() if last else self._wrapped.no_sync()

    def backward(self, loss: torch.Tensor, *, weight: int) -> None:
        """It averages over processes; what is wanted is the sum."""
        (loss * (self._gang.world / weight)).backward()  # type: ignore[no-untyped-call]
