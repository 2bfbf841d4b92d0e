"""What a parallel strategy is given: the model, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


class Root(nn.Module):
    """The model, asked by functions: what a task computes goes past the model's own forward, and where weights are
    spread over processes only a forward pass of what was wrapped makes them whole.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # Layers that are left out by chance would be other ones in each process, and exchanges are one for each layer.
        part: Any
        for part in self.modules():
            if hasattr(part, "layerdrop"):
                part.layerdrop = 0.0

    def forward(self, ask: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """What `ask` makes of the model."""
        return ask(self.model)


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """The same in all processes."""

    bf16: bool = False
    """Whether forward passes compute in bf16."""
    max_grad_norm: float = 1.0
    micro_batch_size: int = 1
    offload_optimizer: bool = False
    """Whether moments, and the step on them, stay in the host's memory."""
    offload_parameters: bool = False
    """Whether weights wait there for their layer's turn."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """A DeepSpeed configuration of the user's own, which contradicts nothing of the above."""
