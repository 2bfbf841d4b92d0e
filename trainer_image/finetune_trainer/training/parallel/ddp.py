"""DistributedDataParallel: each process has the whole model and a share of the batch; gradients are exchanged."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.training.parallel.single import Single


class Replicated(Single):
    """Gradients are averaged with the step's last pass."""

    def prepare(self, objective: nn.Module) -> nn.Module:
        """The objective, wrapped."""
        devices = [self._gang.device] if self._gang.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(objective, device_ids=devices)
        return self._wrapped

    def active(self) -> bool:
        """Whether there are others with which it exchanges."""
        return torch.distributed.get_world_size(self._wrapped.process_group) == self._gang.world > 1

    def no_sync(self) -> AbstractContextManager[Any]:
        """Gradients stay here."""
        return self._wrapped.no_sync()

    def backward(self, loss: torch.Tensor, *, weight: int) -> None:
        """It averages over processes; what is wanted is the sum."""
        (loss * (self._gang.world / weight)).backward()  # type: ignore[no-untyped-call]
