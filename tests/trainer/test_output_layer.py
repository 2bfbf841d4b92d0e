"""The loss of an output layer, made a few tokens at a time, is the loss; so are its gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_api.memory import LOGIT_ROWS
from finetune_trainer.tasks.output_layer import OutputLayer


@pytest.mark.parametrize(("bf16", "close"), [(False, 1e-6), (True, 3e-3)])
@pytest.mark.parametrize("tokens", [0, 5, 3 * LOGIT_ROWS + 7])
def test_the_loss_in_pieces_is_the_loss(tokens: int, bf16: bool, close: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 300, bias=False)
    states, targets = torch.randn(tokens, 16), torch.randint(0, 300, (tokens,))
    found = []
    for pieces in (False, True):
        layer.zero_grad()
        given = states.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and pieces):
            output = OutputLayer.of(SimpleNamespace(get_output_embeddings=lambda: layer)) if pieces else None
            loss = cross_entropy(layer(given), targets, reduction="sum") if output is None else output(given, targets)
        (loss / 3).backward()
        assert layer.weight.grad is not None
        assert given.grad is not None
        found.append((loss.detach(), given.grad, layer.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert float((one - other).norm()) <= close * float(one.norm())


def test_there_may_be_more_to_an_output_layer() -> None:
    for layer in (nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3, bias=False)), None):
        assert OutputLayer.of(SimpleNamespace(get_output_embeddings=lambda layer=layer: layer)) is None
