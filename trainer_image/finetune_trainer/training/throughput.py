"""How fast training is: non-padding tokens per second and GPU, and the share of the hardware's peak that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finetune_api.accelerators import peak_of
from finetune_trainer.models.quantisation import numel
from finetune_trainer.tasks.adapters import plain


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s; None where it is not known (CPUs)."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a whole model: taken before its weights are spread over processes."""

    total: int
    """Parameters."""
    trainable: int
    flops_per_token: float
    """FLOP of one training step per token, attention's quadratic part left out.

    Forward 2 N, gradient to the activations 2 N, gradient to the weights 2 for each trainable one (Kaplan et al. 2020,
    appendix B); N without the input embedding, which is looked up.
    """

    @classmethod
    def of(cls, model: Any) -> Size:
        """As it is to be trained."""
        config = plain(model).config
        total = sum(numel(parameter) for parameter in model.parameters())
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        embedding = int(getattr(config, "vocab_size", 0)) * int(getattr(config, "hidden_size", 0))
        matrices = total - (0 if getattr(config, "tie_word_embeddings", False) else embedding)
        return cls(total=total, trainable=trainable, flops_per_token=4.0 * matrices + 2.0 * min(trainable, matrices))
