"""Method IA3: factors for what some layers read or write (Liu et al. 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

from finetune_api.run import MethodOrder
from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.tasks.task import Task
from finetune_trainer.training.methods.adapter import Adapter


class Factors(Adapter):
    """In layers that PEFT knows by the base's architecture: keys, values and the last one of each block."""

    bits: ClassVar[None] = None

    def __init__(self, order: MethodOrder) -> None:
        pass

    def applied(self, base: LoadedBase, *, task: Task, base_uri: str) -> Any:
        """The base with factors inside."""
        kind = base.model.config.model_type
        field = f"type: IA3 does not know the layers to work on in a model of type {kind}; use LoRA"
        return self._adapted(base, config="IA3Config", settings={}, task=task, base_uri=base_uri, field=field)
