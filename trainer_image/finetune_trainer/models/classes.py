"""The classes that a base's own head tells apart: by their names, never by their places.

A head of as many classes as the data is taken over. Its first output is the first of its own classes, whichever is the
first of the data's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from finetune_api.model_shape import architectures_of
from finetune_trainer.data.fields import listed
from finetune_trainer.models import model_files
from finetune_trainer.process.errors import bad_configuration


def known_classes(folder: Path) -> list[str] | None:
    """In the order of the head's outputs; None where the base has no such head, or gives its outputs no names."""
    config = model_files.configuration(folder)
    names = [str(name) for _, name in sorted((config.id2label or {}).items())]
    return (
        names
        if has_head(config.architectures) and names != [f"LABEL_{number}" for number in range(len(names))]
        else None
    )


def has_head(named: object) -> bool:
    """Whether a model of what a config.json says in `architectures` has a head for classes."""
    return any(each.endswith("ForSequenceClassification") for each in architectures_of(named))


def check_classes(folder: Path, labels: Sequence[str] | None, *, uri: str) -> None:
    """Raises StageError (78) where a head for others would be taken for one of these."""
    known = known_classes(folder)
    if labels and known and len(known) == len(labels) and set(known) != set(labels):
        raise bad_configuration(
            "ClassesDiffer",
            f"model.uri: {uri} tells the classes {listed(known)} apart, and the data has as many others,"
            f" {listed(labels)}: each would begin as one of those; name the same classes in the data, or begin with a"
            " model that has no head for classes yet",
        )


def put_in_order(model: Any, *, known: Sequence[str] | None, labels: Sequence[str]) -> None:
    """Have the outputs of a head for the known classes come in the order of `labels`, where it is for the same."""
    if known is None or list(known) == list(labels) or sorted(known) != sorted(labels):
        return
    order, body = [list(known).index(name) for name in labels], f"{model.base_model_prefix}."
    heads = [each for name, each in model.named_modules() if isinstance(each, nn.Linear) and not name.startswith(body)]
    output = next(each for each in reversed(heads) if each.out_features == len(labels))
    for parameter in output.parameters():
        parameter.data = parameter.data[order]
