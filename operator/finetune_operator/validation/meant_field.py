"""Which field was meant by one that the schema does not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from finetune_operator.validation.decoding import Schema

_LIKENESS = 0.75
_MOST_NAMED = 2
_SHORTEST_PART = 4
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_PART = re.compile(r"[^.\[\]]+")


def meant_field(path: str, schema: Schema) -> str:
    """How to write the field at `path`: like names beside it, else the only place of that name; "": nobody knows."""
    *parents, name = _PART.findall(path)
    here: Schema = schema
    for part in parents:
        here = here.get("items", {}) if part.isdigit() else here.get("properties", {}).get(part, {})
    beside: dict[str, str] = {_letters(known): known for known in here.get("properties", {})}
    everywhere = list(_paths(schema.get("properties", {}).get("spec", {}), "spec"))
    like = [beside[each] for each in _like(_letters(name), list(beside))]
    like = like or _akin(name, list(beside.values()), everywhere=[_last(each) for each in everywhere])
    if like:
        return " or ".join(like)
    elsewhere = [known for known in everywhere if _letters(_last(known)) == _letters(name)]
    return elsewhere[0] if len(elsewhere) == 1 else ""


def _like(name: str, known: list[str]) -> list[str]:
    """The names that may be meant, at most two: the same one, else those that hold this one, else the likest one."""
    if name in known:
        return [name]
    longer = [each for each in known if len(name) >= _SHORTEST_PART and name in each]
    return longer if 0 < len(longer) <= _MOST_NAMED else get_close_matches(name, known, n=1, cutoff=_LIKENESS)


def _akin(name: str, known: list[str], *, everywhere: list[str]) -> list[str]:
    """Of whose words it has the first letters (`lr`); else the whole of which it names (`lora_alpha`); else those that
    share the most words with it, unless others elsewhere share as many.
    """
    initials = [each for each in known if "".join(word[0].lower() for word in _WORD.findall(each)) == _letters(name)]
    shared = {each: len(_words(each) & _words(name)) for each in (*known, *everywhere)}
    whole = [each for each in known if _words(each) <= _words(name)]
    found = initials or whole or [each for each, count in shared.items() if count and count == max(shared.values())]
    return found if len(found) <= _MOST_NAMED and {*found} <= {*known} else []


def _words(name: str) -> set[str]:
    """Without a plural's end."""
    return {word.lower().removesuffix("s") for word in _WORD.findall(name)}


def _paths(schema: Schema, path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _paths(field, f"{path}.{name}")
    if "items" in schema:
        yield from _paths(schema["items"], f"{path}[]")


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _letters(name: str) -> str:
    return re.sub("[-_]", "", name).lower()
