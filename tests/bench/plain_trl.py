"""What one would write without this project: fine-tune with TRL. `python -m tests.bench.plain_trl ORDER.json`.

The work is that of the order: model, data, batch, steps, LoRA rank, length, seed. JSON lines are printed:
`first_step` when that is done, then the figures of the training loop alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):  # type: ignore[misc]
    """Times the loop."""

    began = 0.0
    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == 1:
            print(json.dumps({"first_step": True}), flush=True)
        self.seconds = time.monotonic() - self.began


class CountingTrainer(SFTTrainer):  # type: ignore[misc]
    """Counts what the model sees."""

    tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        self.tokens += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *arguments, **options)


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    rows = [json.loads(line)["messages"] for line in Path(order["data"]).read_text().rstrip("\n").split("\n")]
    data = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
    clock = Clock()
    trainer = CountingTrainer(
        model=AutoModelForCausalLM.from_pretrained(order["model"], dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(order["model"]),
        train_dataset=data,
        peft_config=LoraConfig(r=order["rank"], lora_alpha=2 * order["rank"], target_modules="all-linear"),
        callbacks=[clock],
        args=SFTConfig(
            output_dir=order["out"],
            max_steps=order["steps"],
            per_device_train_batch_size=order["micro_batch"],
            gradient_accumulation_steps=order["batch"] // order["micro_batch"],
            learning_rate=order["learning_rate"],
            max_length=order["max_length"],
            seed=order["seed"],
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=order["cpu"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    print(json.dumps({"tokens": trainer.tokens, "seconds": clock.seconds}), flush=True)


if __name__ == "__main__":
    main()
