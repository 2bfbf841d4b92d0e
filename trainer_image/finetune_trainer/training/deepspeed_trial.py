"""A user's own DeepSpeed configuration, tried on a model of a few numbers before any accelerator is taken.

The library says what it does not know, or cannot do together, when it begins; no list of ours could keep up with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from finetune_api.run import OffloadOrder
from finetune_api.tasks import UsedStrategy
from finetune_trainer.process.errors import StageError, bad_configuration
from finetune_trainer.process.gang import joined
from finetune_trainer.training.parallel.choose import parallel_of
from finetune_trainer.training.sharing import ParallelSettings, Root


def try_out(own: Mapping[str, Any], *, strategy: UsedStrategy, offload: OffloadOrder | None) -> None:
    """Begin with it, alone and on the CPU. Raises StageError (78) that names the key."""
    settings = ParallelSettings(
        offload_optimizer=bool(offload and offload.optimizer),
        offload_parameters=bool(offload and offload.parameters),
        deepspeed=own,
    )
    root = Root(nn.Linear(3, 3, bias=False))
    with joined(gpus=False, meets=True) as gang:
        try:
            parallel_of(strategy, gang=gang, settings=settings).prepare(
                root, optimizer=lambda: torch.optim.AdamW(root.parameters())
            )
        except ValidationError as error:
            raise _refused(_first(error)) from error
        except (ValueError, AssertionError, TypeError, RuntimeError, NotImplementedError) as error:
            raise _refused(str(error).strip().partition("\n")[0]) from error


def _first(error: ValidationError) -> str:
    """The first key that is wrong, and the one that was meant."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    first = error.errors(include_url=False, include_context=False)[0]
    key, what = ".".join(map(str, ("zero_optimization", *first["loc"]))), first["msg"]
    if first["type"] == "extra_forbidden":
        kinds = (DeepSpeedZeroConfig, DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig)
        known = {field.alias or name for kind in kinds for name, field in kind.model_fields.items()}
        near = get_close_matches(str(first["loc"][-1]), known, n=1)
        what = "DeepSpeed has no such key" + (f"; did you mean {near[0]}?" if near else "")
    return f"{key}: {what}"


def _refused(what: str) -> StageError:
    return bad_configuration("BadDeepSpeedConfig", f"compute.configRef: {what}; correct it, or remove it")
