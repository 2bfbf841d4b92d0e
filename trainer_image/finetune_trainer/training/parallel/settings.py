"""What a strategy is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
