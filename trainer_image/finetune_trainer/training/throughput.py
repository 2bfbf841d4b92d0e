"""How fast training is: non-padding tokens per second and GPU, and the share of the hardware's peak that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.tasks.adapters import plain

# Dense bf16 peaks in FLOP/s, from the vendors' data sheets; the first name that the device's name contains.
_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s; None where it is not known (CPUs)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


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
        total = sum(parameter.numel() for parameter in model.parameters())
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        embedding = int(getattr(config, "vocab_size", 0)) * int(getattr(config, "hidden_size", 0))
        matrices = total - (0 if getattr(config, "tie_word_embeddings", False) else embedding)
        return cls(total=total, trainable=trainable, flops_per_token=4.0 * matrices + 2.0 * min(trainable, matrices))
