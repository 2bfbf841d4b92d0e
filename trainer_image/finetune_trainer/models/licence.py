"""Which licence a base model is under, and whether the run may use it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from finetune_trainer.process.errors import bad_configuration

# What the head of a licence's text says -> its identifier on the hub (SPDX, lower case). The first match counts.
_HEADS: tuple[tuple[str, str], ...] = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"llama ([\d.]+) community license", r"llama\1"),
    (r"gemma terms of use", "gemma"),
    (r"gnu affero general public license\s+version 3", "agpl-3.0"),
    (r"gnu lesser general public license\s+version 3", "lgpl-3.0"),
    (r"gnu general public license\s+version 3", "gpl-3.0"),
    (r"gnu general public license\s+version 2", "gpl-2.0"),
    (r"attribution-noncommercial-sharealike 4\.0 international", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial 4\.0 international", "cc-by-nc-4.0"),
    (r"attribution-sharealike 4\.0 international", "cc-by-sa-4.0"),
    (r"attribution 4\.0 international", "cc-by-4.0"),
    (r"cc0 1\.0 universal", "cc0-1.0"),
    (r"permission is hereby granted, free of charge", "mit"),
    (r"redistributions of source code must retain.*neither the name", "bsd-3-clause"),
    (r"redistributions of source code must retain", "bsd-2-clause"),
)
_HEAD_CHARACTERS = 2000
_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def of_readme(text: str) -> str | None:
    """The licence that a model card's front matter declares."""
    found = _FRONT_MATTER.match(text)
    if found is None:
        return None
    try:
        card = yaml.safe_load(found.group(1))
    except yaml.YAMLError:
        return None
    declared = card.get("license") if isinstance(card, dict) else None
    if isinstance(declared, list) and len(declared) == 1:
        declared = declared[0]
    if declared == "other":
        declared = card.get("license_name") or declared
    return _normal(declared)


def of_text(text: str) -> str | None:
    """The licence whose text this is, by its head."""
    head = " ".join(text[:_HEAD_CHARACTERS].lower().split())
    for pattern, identifier in _HEADS:
        found = re.search(pattern, head)
        if found is not None:
            return found.expand(identifier)
    return None


def of_metadata(value: object) -> str | None:
    """The licence in a GGUF file's `general.license`."""
    return _normal(value)


def check(*, licence: str | None, allowed: Sequence[str] | None, uri: str) -> None:
    """Raise StageError (78) unless the licence is among those allowed. None allows any, an unknown one included."""
    if allowed is None or licence in {_normal(name) for name in allowed}:
        return
    listed = ", ".join(allowed)
    if licence is None:
        raise bad_configuration(
            "LicenceUnknown",
            f"model.licence.allow: {listed}, but {uri} declares no licence that is understood; add a README.md"
            " whose front matter has `license:`, or remove model.licence",
        )
    raise bad_configuration(
        "LicenceNotAllowed",
        f"model.licence.allow: {listed}, and {uri} is under {licence}; allow that, or use another base",
    )


def _normal(value: object) -> str | None:
    return value.strip().lower()[:128] if isinstance(value, str) and value.strip() else None
