"""Which field was meant by one that the schema does not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from finetune_operator.validation.decoding import Schema

_LIKENESS = 0.75
_MOST_NAMED = 2
_SHORTEST_PART = 4
_PART = re.compile(r"[^.\[\]]+")


def meant_field(path: str, schema: Schema) -> str:
    """How to write the field at `path`: like names beside it, else the only place of that name; "": nobody knows."""
    *parents, name = _PART.findall(path)
    here: Schema = schema
    for part in parents:
        here = here.get("items", {}) if part.isdigit() else here.get("properties", {}).get(part, {})
    beside: dict[str, str] = {_letters(known): known for known in here.get("properties", {})}
    like = _like(_letters(name), list(beside))
    if like:
        return " or ".join(beside[each] for each in like)
    elsewhere = [known for known in _paths(schema.get("properties", {}).get("spec", {}), "spec") if _is(name, known)]
    return elsewhere[0] if len(elsewhere) == 1 else ""


def _like(name: str, known: list[str]) -> list[str]:
    """The names that may be meant, at most two: the same one, else those that hold this one, else the likest one."""
    if name in known:
        return [name]
    longer = [each for each in known if len(name) >= _SHORTEST_PART and name in each]
    return longer if 0 < len(longer) <= _MOST_NAMED else get_close_matches(name, known, n=1, cutoff=_LIKENESS)


def _paths(schema: Schema, path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _paths(field, f"{path}.{name}")
    if "items" in schema:
        yield from _paths(schema["items"], f"{path}[]")


def _is(name: str, path: str) -> bool:
    return _letters(path.rpartition(".")[2]) == _letters(name)


def _letters(name: str) -> str:
    return re.sub("[-_]", "", name).lower()
