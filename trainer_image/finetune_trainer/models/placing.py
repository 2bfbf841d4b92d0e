"""Where a model that answers is kept: on one GPU, or over all that there are, and what is left in the host's memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.process import memory
from finetune_trainer.tasks.adapters import plain

log = logging.getLogger(__name__)
_ROOM = 0.8
"""Of what is free; the rest is for keys, values and logits."""


def placed(model: Any) -> Any:
    """The model where it computes fastest. Its inputs go to `model.device`, wherever its parts are."""
    if not torch.cuda.is_available():
        return model
    free: dict[int | str, float] = {
        device: _ROOM * torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())
    }
    if _bytes(model) <= free[0]:
        return model.to("cuda:0")
    return spread(model, room={**free, "cpu": _ROOM * memory.available()})


def spread(model: Any, *, room: Mapping[int | str, float], folder: Path | None = None) -> Any:
    """The model block by block over devices with so many free bytes each, in this order; `folder` is for "disk"."""
    from accelerate import dispatch_model, infer_auto_device_map

    whole = list(plain(model)._no_split_modules or ())
    limits = {device: int(size) for device, size in room.items()}
    devices = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=whole)
    log.info(
        "%.1f GiB of weights are spread over %s", _bytes(model) / (1 << 30), sorted(set(map(str, devices.values())))
    )
    return dispatch_model(model, device_map=devices, offload_dir=folder)


def _bytes(model: Any) -> int:
    return sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
