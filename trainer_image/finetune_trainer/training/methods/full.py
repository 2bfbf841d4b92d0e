"""Method Full: all weights change, but for those that are frozen."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from torch import nn

from finetune_api.finetunejob import Freeze
from finetune_api.run import MethodOrder
from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.models.saved_model import Format
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.tasks.task import Task

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


class Full:
    """Each parameter is trained and saved."""

    saved_as: ClassVar[Format] = "Full"
    frozen_base: ClassVar[bool] = False
    bits: ClassVar[None] = None

    def __init__(self, order: MethodOrder) -> None:
        self._freeze = order.freeze

    def applied(self, base: LoadedBase, *, task: Task, base_uri: str) -> Any:
        """The base itself."""
        base.model.requires_grad_(requires_grad=True)
        if self._freeze is not None:
            freeze(base.model, order=self._freeze)
        return base.model


def freeze(model: nn.Module, *, order: Freeze) -> None:
    """Exempt transformer blocks (`layers`, such as "0-5,8") and parameters (`patterns`) from training.

    Raises StageError (78) for a part that matches nothing, or when nothing is left to train.
    """
    ranges = {part: [int(end) for end in part.split("-")] for part in (order.layers or "").split(",") if part}
    patterns = [re.compile(pattern) for pattern in order.patterns or ()]
    unmatched = {*ranges, *(pattern.pattern for pattern in patterns)}
    there = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):  # by any of its names
        block = _BLOCK.search(name)
        matching = [pattern.pattern for pattern in patterns if pattern.search(name)]
        if block:
            number = int(block.group(1))
            there.add(number)
            matching += [part for part, ends in ranges.items() if ends[0] <= number <= ends[-1]]
        if matching:
            parameter.requires_grad = False
            unmatched -= {*matching}
    unmatched |= {part for part, ends in ranges.items() if not {*ends} <= there}
    if unmatched:
        what = ", ".join(sorted(unmatched))
        raise bad_configuration("NoSuchParameter", f"method.freeze: the model has no layer or parameter {what}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise bad_configuration("NothingToTrain", "method.freeze: it leaves no parameter to train")
