"""FSDP2 (`fully_shard`): each process holds a part of every weight, gradient and moment; a block's weights are gathered
when its turn comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_trainer.training.parallel.receive import blocks_of, is_handed_out, receive
from finetune_trainer.training.parallel.single import Single
from finetune_trainer.training.sharing import Root

log = logging.getLogger(__name__)


class FullySharded(Single):
    """Gradients are averaged over processes with each pass: until then each process would hold all of them."""

    hands_out = True

    def prepare(self, root: Root, *, optimizer: Callable[[], torch.optim.Optimizer]) -> nn.Module:
        """The root itself, its blocks and what is beside them sharded; they move to the device one by one."""
        device, settings = self._gang.device.type, self._settings
        mesh = init_device_mesh(device, (self._gang.world,))
        offloads = settings.offload_parameters or settings.offload_optimizer
        policies: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=torch.bfloat16 if settings.bf16 else None, reduce_dtype=torch.float32
            ),
            "offload_policy": CPUOffloadPolicy(pin_memory=device == "cuda") if offloads else OffloadPolicy(),
        }
        blocks = blocks_of(root.model)
        if not blocks:
            log.warning("the model names no blocks: all of its weights are gathered at once")
        handed_out = is_handed_out(root, gang=self._gang)
        for module in (*blocks, root):
            if handed_out:
                receive(module, gang=self._gang)
            fully_shard(module, **policies)
        self._root = cast("FSDPModule", root)
        self._optimizer = optimizer()
        return root

    def active(self) -> bool:
        """Whether every weight is spread over all processes."""
        return isinstance(self._root, FSDPModule) and all(
            isinstance(each, DTensor) and each.device_mesh.size() == self._gang.world
            for each in self._root.parameters()  # type: ignore[attr-defined]
        )

    def backward(self, loss: torch.Tensor, *, weight: int) -> None:
        """It averages over processes; what is wanted is the sum."""
        (loss * (self._gang.world / weight)).backward()  # type: ignore[no-untyped-call]

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        device = self._gang.device
        # A part in the host's memory is exchanged like any other.
        moved = tensor if tensor.device.type == device.type else tensor.to(device)
        whole: torch.Tensor = moved.full_tensor()  # type: ignore[attr-defined]
        return whole

    def _part(self, whole: torch.Tensor, *, of: torch.Tensor) -> torch.Tensor:
        if not isinstance(of, DTensor):
            return whole
        # Each process has read all of it: nothing is sent.
        return distribute_tensor(whole.to(of.device), of.device_mesh, of.placements, src_data_rank=None)
