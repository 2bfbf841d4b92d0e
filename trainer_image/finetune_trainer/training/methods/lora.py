"""Method LoRA: small matrices beside the base's own, which stay as they are."""

from __future__ import annotations

from typing import Any, ClassVar

from finetune_api.run import MethodOrder
from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.models.saved_model import Format
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.tasks.task import Task


class LowRank:
    """An adapter is trained and saved, with what the base lacks."""

    saved_as: ClassVar[Format] = "Adapter"
    frozen_base: ClassVar[bool] = True

    def __init__(self, order: MethodOrder) -> None:
        if order.lora is None:
            raise bad_configuration("BadRunFile", "method LoRA without its settings")
        self._order = order.lora

    def applied(self, base: LoadedBase, *, task: Task, base_uri: str) -> Any:
        """The base with adapters inside."""
        from peft import LoraConfig, get_peft_model

        order = self._order
        targets = order.target_modules or ["all-linear"]
        config = LoraConfig(
            r=order.rank,
            lora_alpha=order.alpha or 2 * order.rank,  # type: ignore[arg-type]  # any number will do
            lora_dropout=order.dropout or 0.0,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            task_type=task.adapter_type,
            # Whoever loads the base again draws other random numbers for these: they belong to the adapter.
            modules_to_save=_modules_of(base) or None,
        )
        try:
            adapted = get_peft_model(base.model, config)
        except ValueError as error:
            raise bad_configuration("NoSuchModule", f"method.lora.targetModules: {error}") from error
        config.base_model_name_or_path = base_uri  # not a path of this container
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
                f"method.type: LoRA: the base model lacks the parameter {name}, which an adapter cannot hold; use Full",
            )
        found.add(module)
    return sorted(found)
