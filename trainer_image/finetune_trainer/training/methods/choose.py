"""What a method is, and the methods by name: a new one is a file beside this one and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol

from torch import nn

from finetune_api.run import MethodOrder
from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.models.quantisation import Bits
from finetune_trainer.models.saved_model import Format
from finetune_trainer.tasks.task import Task
from finetune_trainer.training.methods.full import Full
from finetune_trainer.training.methods.ia3 import Factors
from finetune_trainer.training.methods.lora import LowRank


class Method(Protocol):
    """Which weights change."""

    saved_as: ClassVar[Format]
    """How `saved_model` saves, loads and merges what it trains."""
    frozen_base: ClassVar[bool]
    """Whether the base's own weights stay as they are, so that half of the precision will do for them."""

    @property
    def bits(self) -> Bits | None:
        """To how many bits the base is quantised while it is trained on; None: it is not."""

    def applied(self, base: LoadedBase, *, task: Task, base_uri: str) -> Any:
        """The model, in which what is to be trained asks for gradients. Raises StageError (78)."""


_METHODS: Mapping[str, Callable[[MethodOrder], Method]] = {
    "Full": Full,
    "LoRA": LowRank,
    "QLoRA": LowRank,
    "DoRA": partial(LowRank, directions_alone=True),
    "IA3": Factors,
}


def method_of(order: MethodOrder) -> Method:
    """The method that an order names. Raises StageError (78) for one that lacks its settings."""
    return _METHODS[order.type](order)


def once_each(named: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Of names that share a parameter only the first."""
    first: dict[int, str] = {}
    for name, parameter in named.items():
        first.setdefault(id(parameter), name)
    return {name: named[name] for name in first.values()}


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
