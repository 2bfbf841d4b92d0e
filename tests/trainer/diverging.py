"""One training process whose training diverges in step 6, as long as it has the whole learning rate there.

`python -m tests.trainer.diverging RUN_FILE`, with the variables that torchrun sets. Says where it went back to.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from finetune_api.run import TrainRun, run_adapter
from finetune_trainer.training import train

STEP = 6


def main() -> None:
    """Train."""
    run = run_adapter.validate_json(Path(sys.argv[1]).read_bytes())
    assert isinstance(run, TrainRun)
    stepped = train._step

    def step(setup: train.Setup, *, step: int) -> Any:
        loss, tokens = stepped(setup, step=step)
        if step + 1 != STEP or setup.schedule.roll_backs:
            return loss, tokens
        for parameter in setup.trained.values():
            whole = getattr(parameter, "ds_shape", parameter.shape)
            setup.parallel.put_weight(parameter, torch.full(whole, float("nan")))
        return loss * float("nan"), tokens

    train._step = step
    result = train.work(run)
    print(f"SAID went back to {result.rolled_back_to}, resumed from {result.resumed_from_step}", flush=True)
    os._exit(0)  # gloo's threads


if __name__ == "__main__":
    main()
