"""One of two processes that train with activations that are kept, and that are computed again: whether it is the same.

`python -m tests.trainer.computed_again`, with the variables that torchrun sets.
"""

from __future__ import annotations

import os

import torch
from tests.trainer.small_run import LORA
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.run import MethodOrder
from finetune_api.tasks import UsedStrategy
from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.process.gang import Gang, joined
from finetune_trainer.tasks import variable_length
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import Encoded, packed_batch
from finetune_trainer.training.methods.choose import method_of, trainable_parameters
from finetune_trainer.training.parallel.choose import parallel_of
from finetune_trainer.training.sharing import ParallelSettings, Root
from finetune_trainer.training.train import recompute

STRATEGIES: tuple[UsedStrategy, ...] = ("DDP", "FSDP2", "DeepSpeedZeRO1", "DeepSpeedZeRO2", "DeepSpeedZeRO3")
METHODS = {"LoRA": {**LORA, "lora": {**LORA["lora"], "dropout": 0.5}}, "Full": {"type": "Full"}}


def main() -> None:
    """Under each strategy."""
    found = []
    with joined(gpus=False) as gang:  # DeepSpeed knows one group in its life
        for strategy in STRATEGIES:
            for name in METHODS:
                kept, again = (trained(gang, strategy, name, again=again) for again in (False, True))
                found.append((name, strategy, all(torch.equal(whole, again[key]) for key, whole in kept.items())))
        gang.wait()
    print("SAID", found, flush=True)
    os._exit(0)  # gloo's threads


def trained(gang: Gang, strategy: UsedStrategy, name: str, *, again: bool) -> dict[str, torch.Tensor]:
    """In two steps with dropout."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    method = method_of(MethodOrder.model_validate(METHODS[name]))
    task = task_of("Chat")
    model = method.applied(LoadedBase(model=base, untrained=frozenset()), task=task, base_uri="none").train()
    ids = tuple(range(gang.rank, gang.rank + 20))
    batch = packed_batch([Encoded(ids=ids, targets=(False, *[True] * 19), label=None)] * 2)
    torch.manual_seed(gang.rank)
    assert variable_length.use(base)
    passes: list[int] = []
    base.model.layers[1].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    if again:
        recompute(model)
    own = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    parallel = parallel_of(strategy, gang=gang, settings=ParallelSettings(deepspeed=own if "3" in strategy else {}))
    ask = parallel.prepare(Root(model), optimizer=lambda: torch.optim.AdamW(trainable_parameters(model).values()))
    for _ in range(2):
        with parallel.accumulating(last=True):
            parallel.backward(ask(lambda inner: task.loss(inner, batch)), weight=76)
        parallel.step(trainable_parameters(model), learning_rate=0.1, max_norm=1.0)
    assert len(passes) == (4 if again else 2)
    found = {name: whole.clone() for name, whole in parallel.weights(trainable_parameters(model))}
    assert all(whole.any() for whole in found.values()), "what begins as zeros has learned"
    return found


if __name__ == "__main__":
    main()
