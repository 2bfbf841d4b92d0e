"""Models with and without an adapter around them: the one place that looks for it."""

from __future__ import annotations

from typing import Any


def is_adapted(model: Any) -> bool:
    """Whether a model is a base with an adapter."""
    return hasattr(model, "peft_config")


def plain(model: Any) -> Any:
    """The `transformers` model itself. An adapter's layers are inside of it, so it answers as the whole does."""
    return model.get_base_model() if is_adapted(model) else model


def merged(model: Any) -> Any:
    """The model with its adapter's changes added to the weights, where it has one."""
    return model.merge_and_unload().eval() if is_adapted(model) else model
