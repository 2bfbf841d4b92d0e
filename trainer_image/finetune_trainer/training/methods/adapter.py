"""What methods that leave the base as it is have in common: they add parts to it, train those alone and save them."""

from __future__ import annotations

from typing import Any, ClassVar

from finetune_trainer.models.base_model import LoadedBase
from finetune_trainer.models.saved_model import Format
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.tasks.task import Task


class Adapter:
    """An adapter is trained and saved, with what the base lacks."""

    saved_as: ClassVar[Format] = "Adapter"
    frozen_base: ClassVar[bool] = True

    def _adapted(
        self, base: LoadedBase, *, config: str, settings: dict[str, Any], task: Task, base_uri: str, field: str
    ) -> Any:
        """The base with what PEFT's configuration of that name puts into it. Raises StageError (78): `field`, of
        `method`, is what names layers that are not there.
        """
        from finetune_trainer.models.adapter_library import peft

        made = getattr(peft, config)(
            **settings,
            task_type=task.adapter_type,
            # Whoever loads the base again draws other random numbers for these: they belong to the adapter.
            modules_to_save=_modules_of(base) or None,
        )
        try:
            adapted = peft.get_peft_model(base.model, made)
        except ValueError as error:
            raise bad_configuration("NoSuchModule", f"method.{field}: {error}") from error
        for each in (each for each in adapted.parameters() if each.requires_grad):
            each.data = each.data.float()  # a head that the base lacks is a copy of its own, in the base's precision
        made.base_model_name_or_path = base_uri  # not a path of this container
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
                f"method.type: the base model lacks the parameter {name}, which an adapter cannot hold; use Full",
            )
        found.add(module)
    return sorted(found)
