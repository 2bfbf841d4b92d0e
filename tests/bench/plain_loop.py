"""What one would write oneself for several processes: a loop over DeepSpeed or torch's `fully_shard`, by torchrun.
`python -m torch.distributed.run ... -m tests.bench.plain_loop ORDER.json`; the order is plain_trl's, with `strategy`.

No trainer will do: without GPUs those of transformers and TRL fall back to DDP in silence, or train apart.
Prints what plain_trl prints, each process for itself.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

ZERO2 = {"zero_optimization": {"stage": 2}, "zero_force_ds_cpu_optimizer": False, "gradient_clipping": 1.0}


def batches(order: dict[str, Any], *, rank: int, world: int) -> Iterator[dict[str, torch.Tensor]]:
    """This process's micro-batches, step by step; the loss is over the answers."""
    tokenizer = AutoTokenizer.from_pretrained(order["model"])
    rows = []
    for line in Path(order["data"]).read_text().rstrip("\n").split("\n"):
        messages = json.loads(line)["messages"]
        asked, whole = (
            tokenizer.apply_chat_template(part, tokenize=True, return_dict=True, add_generation_prompt=prompt)[
                "input_ids"
            ]
            for part, prompt in ((messages[:-1], True), (messages, False))
        )
        labels = [-100] * len(asked) + whole[len(asked) :]
        rows.append([torch.tensor(each[: order["max_length"]]) for each in (whole, labels)])
    mine, size = rows[rank::world], order["micro_batch"]
    for first in range(0, order["steps"] * order["batch"] // world, size):
        chosen = [mine[index % len(mine)] for index in range(first, first + size)]
        ids, labels = (
            pad_sequence([row[part] for row in chosen], batch_first=True, padding_value=fill)
            for part, fill in ((0, 0), (1, -100))
        )
        mask = pad_sequence([torch.ones_like(row[0]) for row in chosen], batch_first=True)
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(order["seed"])
    base = AutoModelForCausalLM.from_pretrained(order["model"], dtype="float32")
    model: Any = get_peft_model(
        base, LoraConfig(r=order["rank"], lora_alpha=2 * order["rank"], target_modules="all-linear")
    )
    passes = order["batch"] // order["micro_batch"] // world

    def optimizer() -> torch.optim.Optimizer:
        trained = [each for each in model.parameters() if each.requires_grad]
        return torch.optim.AdamW(trained, lr=order["learning_rate"], weight_decay=0.0, fused=True)

    engine = None
    if order["strategy"] == "DeepSpeedZeRO2":
        import deepspeed

        sizes = {"train_micro_batch_size_per_gpu": order["micro_batch"], "gradient_accumulation_steps": passes}
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer(), config=ZERO2 | sizes, dist_init_required=False
        )
        assert engine.zero_optimization_stage() == 2
    elif order["strategy"] == "FSDP2":
        mesh = init_device_mesh("cpu", (world,))
        for layer in base.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        steps = optimizer()
    else:
        steps, model = optimizer(), DistributedDataParallel(model)
    tokens, began = 0, time.monotonic()
    for number, batch in enumerate(batches(order, rank=rank, world=world), start=1):
        tokens += int(batch["attention_mask"].sum())
        last = number % passes == 0
        if engine is not None:
            engine.backward(engine(**batch).loss)
            engine.step()
        else:
            if order["strategy"] == "DDP":
                model.require_backward_grad_sync = last
            (model(**batch).loss / passes).backward()
            if last:
                torch.nn.utils.clip_grad_norm_([each for each in model.parameters() if each.requires_grad], 1.0)
                steps.step()
                steps.zero_grad()
        if last and number == passes:
            print(json.dumps({"first_step": True}), flush=True)
    print(json.dumps({"tokens": tokens, "seconds": time.monotonic() - began}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
