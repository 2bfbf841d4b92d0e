"""A base that one process alone has read is handed out: however many a machine trains in, its memory holds it once.

The others have built the model without its weights (on torch's `meta` device).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from finetune_trainer.process.gang import Gang
from finetune_trainer.tasks.adapters import plain


def is_handed_out(module: nn.Module, *, gang: Gang) -> bool:
    """Whether a process lacks weights. All must ask at the same point."""
    return gang.any_of(any(each.is_meta for each in module.parameters()))


def receive(module: nn.Module, *, gang: Gang) -> None:
    """Have the first process's weights and buffers, one after another, on the device; but for weights that are shared
    out already. Weights that are one stay one.
    """
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for holder in module.modules():
        held: tuple[dict[str, Any], ...] = (holder._parameters, holder._buffers)
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, DTensor) or hasattr(tensor, "ds_id"):
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = tensor, _received(tensor, gang=gang)
                if tensor.is_meta:
                    tensors[name] = made[id(tensor)][1]


def _received(tensor: torch.Tensor, *, gang: Gang) -> torch.Tensor:
    """The first process's numbers; its own tensor stays where it is."""
    if tensor.is_meta:
        whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=gang.device)
    else:
        whole = tensor.detach().to(gang.device).contiguous()
    dist.broadcast(whole.reshape(-1).view(torch.uint8), src=0)  # not every backend knows every type
    if not tensor.is_meta:
        return tensor
    return nn.Parameter(whole, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole


def blocks_of(model: Any) -> list[nn.Module]:
    """A model's repeated blocks, as `transformers` names them (`_no_split_modules`); of nested ones the outer."""
    names = set(plain(model)._no_split_modules or ())
    found = {name: module for name, module in model.named_modules() if type(module).__name__ in names}
    return [module for name, module in found.items() if not any(name.startswith(f"{outer}.") for outer in found)]
