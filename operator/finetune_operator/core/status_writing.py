"""Statuses as they are read and written, whatever the kind."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from finetune_api.base import ApiModel, first_problem
from finetune_operator.core.ports import Key, Manifest

S = TypeVar("S", bound=ApiModel)


def key_of(manifest: Manifest) -> Key:
    """What is reconciled: this object."""
    metadata = manifest["metadata"]
    return Key(kind=manifest["kind"], namespace=metadata["namespace"], name=metadata["name"])


def merged(manifest: Manifest, status: ApiModel) -> dict[str, Any]:
    """The new status, with what a newer operator has written there and this one does not know."""
    known = {field.alias or name for name, field in type(status).model_fields.items()}
    unknown = {name: value for name, value in (manifest.get("status") or {}).items() if name not in known}
    return unknown | status.to_dict()


def readable_status(manifest: Manifest, type_: type[S]) -> S:
    """The status; an empty one where it cannot be read."""
    try:
        return type_.model_validate(manifest.get("status") or {})
    except ValidationError:
        return type_()


def unreadable(error: ValidationError) -> str:
    """Why a spec is left to a newer operator."""
    return f"{first_problem(error)}; this version of the operator cannot read it, a newer one may"
