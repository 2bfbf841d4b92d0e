"""The model as it is trained: which parameters change, and the loss of a batch."""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_api.finetunejob import Freeze
from finetune_api.run import MethodOrder
from finetune_api.shared_fields import Task
from finetune_trainer.base_model import LoadedBase
from finetune_trainer.encoding import IGNORED, Batch
from finetune_trainer.errors import bad_configuration

log = logging.getLogger(__name__)
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
# Of these it is known that the output layer is a plain linear map of the decoder's last state, so that it can be
# applied at the targets only: a prompt of 100 tokens with an answer of 3 costs 3 rows of logits instead of 103.
_PLAIN_OUTPUT = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3"}


def with_method(base: LoadedBase, *, method: MethodOrder, task: Task, base_uri: str) -> Any:
    """The model prepared for training by a method: LoRA adapters, or frozen parts."""
    if method.type == "LoRA":
        return _with_lora(base, method=method, task=task, base_uri=base_uri)
    if method.type != "Full":
        raise bad_configuration("NotSupported", f"method {method.type} is not supported yet")
    model = base.model
    for parameter in model.parameters():
        parameter.requires_grad = True
    if method.freeze is not None:
        freeze(model, order=method.freeze)
    return model


def _with_lora(base: LoadedBase, *, method: MethodOrder, task: Task, base_uri: str) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = method.lora
    if lora is None:
        raise bad_configuration("BadRunFile", "method LoRA without its settings")
    targets = lora.target_modules or ["all-linear"]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,  # type: ignore[arg-type]  # any number will do
        lora_dropout=lora.dropout or 0.0,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="SEQ_CLS" if task == "SequenceClassification" else "CAUSAL_LM",
        # Whoever loads the base again draws other random numbers for these: they belong to the adapter.
        modules_to_save=_modules_of(base) or None,
    )
    try:
        adapted = get_peft_model(base.model, config)
    except ValueError as error:
        raise bad_configuration("NoSuchModule", f"method.lora.targetModules: {error}") from error
    adapted.peft_config["default"].base_model_name_or_path = base_uri  # not a path of this container
    return adapted


def _modules_of(base: LoadedBase) -> list[str]:
    """The largest modules that have untrained parameters only, by name."""
    found = set()
    for name in base.untrained:
        module = name.rpartition(".")[0]
        parent = module.rpartition(".")[0]
        while parent and all(
            f"{parent}.{inner}" in base.untrained for inner, _ in base.model.get_submodule(parent).named_parameters()
        ):
            module, parent = parent, parent.rpartition(".")[0]
        if not module:
            raise bad_configuration(
                "UnsupportedMethod",
                f"method.type LoRA: the base model lacks the parameter {name}, which an adapter cannot hold; use Full",
            )
        found.add(module)
    return sorted(found)


def freeze(model: nn.Module, *, order: Freeze) -> None:
    """Exempt transformer blocks (`layers`, such as "0-5,8") and parameters (`patterns`) from training.

    Raises StageError (78) for a part that matches nothing, or when nothing is left to train.
    """
    blocks = _numbers(order.layers) if order.layers else set()
    patterns = [re.compile(pattern) for pattern in order.patterns or ()]
    unmatched: set[int | str] = {*blocks, *(pattern.pattern for pattern in patterns)}
    for name, parameter in model.named_parameters():
        block = _BLOCK.search(name)
        number = int(block.group(1)) if block else None
        matching = [pattern.pattern for pattern in patterns if pattern.search(name)]
        if number in blocks or matching:
            parameter.requires_grad = False
            unmatched -= {number, *matching}
    if unmatched:
        what = ", ".join(str(part) for part in sorted(unmatched, key=str))
        raise bad_configuration("NoSuchParameter", f"method.freeze: the model has no layer or parameter {what}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise bad_configuration("NothingToTrain", "method.freeze leaves no parameter to train")


def _numbers(ranges: str) -> set[int]:
    numbers: set[int] = set()
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class LossOf(nn.Module):
    """Forward gives the summed loss over a batch's targets. What DistributedDataParallel wraps."""

    def __init__(self, model: Any, *, task: Task) -> None:
        super().__init__()
        self.model = model
        self._classifies = task == "SequenceClassification"
        plain = model.get_base_model() if hasattr(model, "peft_config") else model
        self._at_targets_only = not self._classifies and plain.config.model_type in _PLAIN_OUTPUT

    def forward(self, batch: Batch) -> torch.Tensor:
        """Sum of cross entropies, in nats, fp32; shape ()."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if self._classifies:
            logits = self.model(**inputs).logits  # (B, classes)
            return cross_entropy(logits.float(), batch.labels, ignore_index=IGNORED, reduction="sum")
        if self._at_targets_only:
            # PEFT replaces layers inside the base model, so the base model is the adapted one.
            plain = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
            hidden = plain.get_decoder()(**inputs, use_cache=False).last_hidden_state  # (B, T, d)
            at_targets = batch.labels != IGNORED
            logits = plain.get_output_embeddings()(hidden[at_targets])  # (targets, V)
            return cross_entropy(logits.float(), batch.labels[at_targets], reduction="sum")
        logits = self.model(**inputs, use_cache=False).logits  # (B, T, V)
        return cross_entropy(
            logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
