"""Server-side apply for one field manager: what it applied before and applies no more goes, the rest stays.

Lists are replaced as a whole; the operator applies none that others write to.
"""

from __future__ import annotations

from typing import Any

from finetune_operator.ports import Manifest

APPLIED_ANNOTATION = "local.finetune.dev/applied"
"""Holds the operator's last applied configuration; shown to nobody."""


def applied_onto(*, current: Manifest, before: Manifest, wanted: Manifest) -> Manifest:
    """The object after applying `wanted`, where `before` is what was applied last."""
    merged: Manifest = _merged(current, before, wanted)
    return merged


def _merged(current: Any, before: Any, wanted: Any) -> Any:
    if not isinstance(current, dict) or not isinstance(wanted, dict):
        return wanted
    earlier = before if isinstance(before, dict) else {}
    kept = {key: value for key, value in current.items() if key in wanted or key not in earlier}
    return kept | {key: _merged(current.get(key), earlier.get(key), value) for key, value in wanted.items()}
