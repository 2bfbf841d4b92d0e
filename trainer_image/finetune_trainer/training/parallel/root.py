"""What a strategy wraps."""

from __future__ import annotations

from collections.abc import Callable
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

    def forward(self, ask: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """What `ask` makes of the model."""
        return ask(self.model)
