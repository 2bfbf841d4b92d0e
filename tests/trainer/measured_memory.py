"""What training really takes of memory, in bytes: `python -m tests.trainer.measured_memory METHOD ROWS TOKENS [again]`.

The trainer's own method, strategy, objective and optimiser, on random tokens.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune_api.run import MethodOrder
from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.process.gang import Gang
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import Encoded
from finetune_trainer.training.methods.choose import method_of, trainable_parameters
from finetune_trainer.training.objectives.choose import objective_of
from finetune_trainer.training.parallel.choose import parallel_of
from finetune_trainer.training.sharing import ParallelSettings, Root
from finetune_trainer.training.train import _decayed, _optimizer, recompute

LARGE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
SMALL = LARGE | {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 100}
M_MMAP_THRESHOLD = -3
LORA = MethodOrder.model_validate({"type": "LoRA", "lora": {"rank": 8, "targetModules": ["all-linear"]}})


def train(shape: dict[str, Any], *, method: str, rows: int, tokens: int, again: bool = False) -> None:
    """Two steps, of several passes each."""
    task, order = task_of("CausalLM"), MethodOrder(type=cast("Any", method), lora=None)
    base = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
    if method == "LoRA":
        order = LORA
    model = method_of(order).applied(LoadedBase(model=base, untrained=frozenset()), task=task, base_uri="none")
    if again:
        recompute(model)
    model.train()
    gang = cast("Gang", SimpleNamespace(device=torch.device("cpu"), world=1))
    parallel = parallel_of("DDP", gang=gang, settings=ParallelSettings())
    optimizer = partial(_optimizer, model, decayed=_decayed(model), weight_decay=0.0)
    ask, objective = parallel.prepare(Root(model), optimizer=optimizer), objective_of(task)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape["vocab_size"], (rows, tokens), generator=generator).tolist()
    examples = [Encoded(ids=tuple(row), targets=(False, *[True] * (tokens - 1)), label=None) for row in ids]
    for _ in range(2):
        for _ in range(2):
            batch = task.batch(examples, pad_id=0)
            parallel.backward(ask(lambda inner, batch=batch: objective(inner, batch)), weight=rows * tokens)
        parallel.step(trainable_parameters(model), learning_rate=1e-4, max_norm=1.0)


def taken(what: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at most."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main(method: str, rows: str, tokens: str, again: str = "") -> None:
    """How far the resident set grows over that of a worker with hardly a model."""
    torch.set_num_threads(1)
    train(SMALL, method=method, rows=1, tokens=8)
    # Else the C library keeps what was freed and does not always use it again, up to twice of what passes hold.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far begins anew
    before = taken("VmRSS")
    train(LARGE, method=method, rows=int(rows), tokens=int(tokens), again=bool(again))
    print(json.dumps(taken("VmHWM") - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
