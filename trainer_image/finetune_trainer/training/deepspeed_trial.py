"""A user's own DeepSpeed configuration, tried on a model of a few numbers before any accelerator is taken.

The library says what it does not know, or cannot do together, when it begins; no list of ours could keep up with it.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """The first key that is wrong, and why. Which keys there are, the operator has looked at."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, ('zero_optimization', *first['loc'])))}: {first['msg']}"


def _refused(what: str) -> StageError:
    return bad_configuration("BadDeepSpeedConfig", f"compute.configRef: {what}; correct it, or remove it")
