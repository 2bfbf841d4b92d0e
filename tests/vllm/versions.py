"""Three versions of one small model, as jobs would have recorded them, and what they answer in the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from demo import assets
from peft import LoraConfig, get_peft_model
from tests.trainer.serving.server_process import publish
from tests.unit.endpoint.test_vllm import version
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_trainer.data.dataset import Example, Message
from finetune_trainer.data.held_out_probes import FILE_NAME, make_probes, to_text
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.task import Asked, Decoding

QUESTIONS = ("What is the capital of France?", "Say hello.", "Name a fruit.", "What is 2 + 3?", "Who wrote Hamlet?")
TOKENS = 16
"""Of an answer at most. The first, third and fourth end before; the full model answers the second and the fifth
otherwise than the others."""
LONG_QUESTION = "Count these words for me: " + "one two three four five six seven " * 8
ENDPOINT = "router"


class Maker:
    """Makes versions in a folder, one at a time: each is half a gigabyte."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(2)
        self.folder = folder
        self.answers: dict[str, dict[str, str]] = {}
        """Version -> question -> answer."""

    def full(self) -> dict[str, Any]:
        """The base model as one that only its chat template tells where a turn ends."""
        model, tokenizer = self._base()
        tokenizer.eos_token = "<|endoftext|>"
        model.generation_config.eos_token_id = [tokenizer.eos_token_id]
        return self._version("v1", model, tokenizer, before=None)

    def adapter(self, before: dict[str, Any]) -> dict[str, Any]:
        """A LoRA adapter on the base model."""
        model, tokenizer = self._base()
        return self._version("v2", _adapted(model), tokenizer, before=before, rank=8)

    def merged(self, before: dict[str, Any], *, context: int) -> dict[str, Any]:
        """The same adapter, merged."""
        model, tokenizer = self._base()
        return self._version("v3", _adapted(model).merge_and_unload(), tokenizer, before=before, context=context)

    def _base(self) -> tuple[Any, Any]:
        base = str(assets.smollm2_folder())
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
            base
        )

    def _version(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        *,
        before: dict[str, Any] | None,
        rank: int | None = None,
        context: int = 512,
    ) -> dict[str, Any]:
        self.answers[name] = dict(zip(QUESTIONS, _evaluated(model, tokenizer), strict=True))
        served = publish(
            model,
            tokenizer,
            folder=self.folder / name,
            base=assets.smollm2_folder(),
            task="Chat",
            companions={FILE_NAME: to_text(make_probes(_examples()))},
        )
        recorded = version().to_dict()
        spec = {
            "endpointRef": {"name": ENDPOINT},
            "contextTokens": context,
            "method": {"type": "LoRA", "lora": {"rank": rank}} if rank else {"type": "Full"},
            "evaluation": {"verdict": "Pass", "precision": "FP32"},
        }
        if before is not None:
            stable = before["spec"]["artifact"]["digest"]
            spec["baseline"] = {"name": before["metadata"]["name"], "digest": stable}
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "ModelVersion",
            "metadata": {"name": name, "namespace": "default", "labels": {"finetune.dev/endpoint": ENDPOINT}},
            "spec": recorded | served | spec,
        }


def _adapted(model: Any) -> Any:
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    return adapted.eval()


def _examples() -> Sequence[Example]:
    return [
        Example(
            id=question,
            group=question,
            source="tests",
            messages=(Message(role="user", content=question), Message(role="assistant", content="It is.")),
        )
        for question in QUESTIONS
    ]


def _evaluated(model: Any, tokenizer: Any) -> list[str]:
    asked = Asked(model=model, tokenizer=tokenizer, labels=(), context=512, pad_id=0, who="the version")
    decoding = Decoding(task="Chat", max_length=512, max_new_tokens=TOKENS, batch_size=8, generate=True)
    return [str(outcome.answer) for outcome in task_of("Chat").ask(asked, _examples(), decoding=decoding).outcomes]  # type: ignore[union-attr]
