"""The digest of a stage's orders: all of them but what is named, so that nothing new is forgotten."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from typing import Any

from finetune_api.base import StrictModel
from finetune_api.run import ModelOrder

_PLACE = {"uri", "revision", "allowedLicences", "trustRemoteCode"}


def orders_digest(run: StrictModel, *, apart: Set[str], **instead: Any) -> str:
    """sha256 of a run file's fields (wire names) but those in `apart`, with `instead` in their place or beside them."""
    orders = {name: value for name, value in run.to_dict().items() if name not in apart} | instead
    return content_digest(orders)


def content_digest(content: dict[str, Any]) -> str:
    """sha256 of an object, whatever the order of its keys."""
    return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def but_for_the_place(order: ModelOrder) -> dict[str, Any]:
    """A model's order without where it is and whether it may be taken: what it is, its digest says."""
    return {name: value for name, value in order.to_dict().items() if name not in _PLACE}
