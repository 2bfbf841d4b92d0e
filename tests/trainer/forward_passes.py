"""One training process in which each forward pass is an exchange, as under strategies that shard the model.

`python -m tests.trainer.forward_passes RUN_FILE`, with the variables that torchrun sets. Whoever runs more batches than
the others waits for them, and ends with an error after `SECONDS`.
"""

from __future__ import annotations

import datetime
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_api.run import TrainRun, run_adapter
from finetune_trainer.training import batches, train
from finetune_trainer.training.sharing import Root

SECONDS = 20


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from a tensor: a device would be waited for each time.

    But for those that transformers reads, one a pass: whether rows are padded (with a mask) or packed (without); and
    for which weights were asked, of which DDP keeps account in the host's memory, with numbers of 32 bits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, called: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if called is torch.ops.aten._local_scalar_dense.default:
            stack = traceback.extract_stack()
            account = arguments[0].dtype == torch.int32 and any(each.name == "_engine_run_backward" for each in stack)
            self.count += not (account or any(each.filename.endswith("masking_utils.py") for each in stack))
        return called(*arguments, **(named or {}))


def main() -> None:
    """Train, and say how many passes there were."""
    run = run_adapter.validate_json(Path(sys.argv[1]).read_bytes())
    assert isinstance(run, TrainRun)
    batches._VALIDATION_BATCH = 1
    alone, groups, passes = Root.forward, [], 0
    stepped, reads = train._step, Reads()

    def forward(self: Any, ask: Any) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if not groups:
            groups.append(dist.new_group(timeout=datetime.timedelta(seconds=SECONDS)))
        dist.all_reduce(torch.ones(1), group=groups[0])
        return alone(self, ask)

    def step(*arguments: Any, **named: Any) -> Any:
        with reads:
            return stepped(*arguments, **named)

    Root.forward = forward  # type: ignore[method-assign]
    train._step = step
    result = train.work(run)
    print(f"passes {passes} steps {result.steps} reads {reads.count}", flush=True)
    os._exit(0)  # gloo's threads


if __name__ == "__main__":
    main()
