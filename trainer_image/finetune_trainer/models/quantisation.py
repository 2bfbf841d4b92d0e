"""Base models in 4 or 8 bits, by bitsandbytes: while an adapter is trained beside them, and at no other time."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import nn

from finetune_trainer.process.errors import bad_configuration

Bits = Literal[4, 8]


def options(bits: Bits, *, dtype: str, device: torch.device | str, kept: Sequence[str] | None) -> dict[str, Any]:
    """What `from_pretrained` is given to quantise each layer as it is read, right on its device.

    `dtype` is that of what stays as it is, of which the modules `kept` are a part (None: what makes tokens of it).
    """
    from transformers import BitsAndBytesConfig

    import finetune_trainer.models.adapter_library  # noqa: F401  # which sees to it how bitsandbytes is imported

    on_cpu = torch.device(device).type == "cpu"
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_skip_modules=None if kept is None else list(kept),
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="float32" if on_cpu else dtype,  # bf16 takes 9 times as long there
        # FSDP2 would take what is stored as another type for numbers, and convert them.
        bnb_4bit_quant_storage=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def check(model: nn.Module) -> None:
    """That layers are quantised, and are computed with gradients. Raises StageError (78)."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    layers = [each for each in model.modules() if isinstance(each, Linear4bit | Linear8bitLt)]
    if not layers:
        raise bad_configuration(
            "UnsupportedMethod", "method.type: QLoRA: the base model has no linear layers to quantise; use LoRA"
        )
    for layer in layers:
        # Once asked without gradients, it would compute in bf16 from then on, and have none in training either.
        layer.support_avx512bf16_for_cpu = False


def numel(parameter: nn.Parameter) -> int:
    """How many numbers it stands for."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else prod(state.shape)
