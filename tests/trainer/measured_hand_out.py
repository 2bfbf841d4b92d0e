"""What the hand-out of a base takes of a process's memory at its peak, in bytes: one of two processes.

`python -m tests.trainer.measured_hand_out STRATEGY`, with the variables that torchrun sets. The first process has the
weights, the other one none; adapters are trained beside them.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tests.trainer.measured_memory import LARGE, LORA, M_MMAP_THRESHOLD, SMALL, taken
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.process.gang import Gang, joined
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.training.methods.choose import method_of, trainable_parameters
from finetune_trainer.training.parallel.choose import parallel_of
from finetune_trainer.training.sharing import ParallelSettings, Root


def hand_out(shape: dict[str, Any], *, strategy: Any, gang: Gang) -> None:
    """From a base that was read to a model that is shared out."""
    torch.manual_seed(0)
    with torch.device("cpu" if gang.is_first else "meta"):
        base = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
    read = LoadedBase(model=base, untrained=frozenset())
    model = method_of(LORA).applied(read, task=task_of("CausalLM"), base_uri="none")
    parallel = parallel_of(strategy, gang=gang, settings=ParallelSettings())
    assert parallel.hands_out
    parallel.prepare(Root(model), optimizer=lambda: torch.optim.AdamW(trainable_parameters(model).values()))
    assert parallel.active()
    gang.wait()


def main(strategy: str) -> None:
    """How far the resident set grows over that of a process that has handed out hardly a model."""
    torch.set_num_threads(1)
    with joined(gpus=False) as gang:
        hand_out(SMALL, strategy=strategy, gang=gang)
        gc.collect()
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)  # what is freed is given back
        Path("/proc/self/clear_refs").write_text("5")
        before = taken("VmRSS")
        hand_out(LARGE, strategy=strategy, gang=gang)
        print("SAID", taken("VmHWM") - before, flush=True)
        os._exit(0)  # gloo's threads


if __name__ == "__main__":
    main(*sys.argv[1:])
