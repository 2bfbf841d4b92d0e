"""Single fields of users' rows, read strictly: nothing is guessed, and whatever is wrong is named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_DEEPEST = 100
"""Levels of what a chat template is given."""


class Problem(Exception):
    """What is wrong with a row. `field` is empty where it is the row as a whole."""

    def __init__(self, *, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = printable(field)
        self.reason = printable(reason)


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A value of a file that Python has nothing for, such as a date beyond the year 9999."""

    kind: str
    """In the words of its file."""


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row as it is in the file: its fields, or what is wrong with it."""

    line: int
    fields: Mapping[str, Any] | Problem
    raw: str


def is_absent(value: object) -> bool:
    """Whether a field says nothing: files with fixed columns pad their rows so."""
    return value is None or value in ("", [], {})


def text_of(row: Mapping[str, Any], field: str) -> str:
    """A text that is there. Raises Problem."""
    value = row.get(field)
    if value is None:
        raise Problem(field=field, reason="is missing")
    if not isinstance(value, str):
        raise Problem(field=field, reason=f"is {kind_of(value)}; expected a string")
    if not value.strip():
        raise Problem(field=field, reason="is empty")
    return clean(value, field)


def clean(text: str, field: str) -> str:
    """The text, if it is valid. Raises Problem."""
    if "\x00" in text:
        raise Problem(field=field, reason="contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Problem(field=field, reason=_not_unicode(text)) from error
    return text


def check_json(value: object, field: str, *, levels: int = _DEEPEST) -> None:
    """Raises Problem for what cannot be written as JSON, or is nested so deeply that those who go through it fail."""
    match value:
        case None | bool() | int():
            return
        case str():
            clean(value, field)
        case float() if math.isfinite(value):
            return
        case list() | dict() if not levels:
            raise Problem(field=field, reason="is nested too deeply")
        case list():
            for index, each in enumerate(value):
                check_json(each, f"{field}[{index}]", levels=levels - 1)
        case dict():
            for name, each in value.items():
                check_json(name, f"{field}: a name")
                check_json(each, f"{field}.{name}", levels=levels - 1)
        case _:
            raise Problem(field=field, reason=f"is {kind_of(value)}, which JSON does not have")


def printable(raw: str) -> str:
    """A text for people and files, whatever was in its own."""
    return raw.encode(errors="replace").decode()


def _not_unicode(text: str) -> str:
    """Bytes that are not UTF-8 are read as lone surrogates U+DC80 to U+DCFF."""
    if any("\udc80" <= character <= "\udcff" for character in text):
        return (
            "is not valid Unicode: it has bytes that are not UTF-8, as files in Windows-1252 or Latin-1 have. Save the"
            " file as UTF-8"
        )
    return "is not valid Unicode (half a surrogate pair)"


def parse_json(text: str) -> Any:
    """Strict JSON. Raises Problem."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError as error:
        raise Problem(field="", reason="is nested too deeply") from error
    except ValueError as error:
        raise Problem(field="", reason=f"is not JSON: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Problem(field=repeated, reason="is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise Problem(field="", reason=f"is not JSON: {name} is not a number that JSON has")


def kind_of(value: object) -> str:
    """What kind of JSON value it is, in words."""
    names: dict[type, str] = {
        type(None): "missing",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    if isinstance(value, Unread):
        return f"a {value.kind} that cannot be read"
    return names.get(type(value), type(value).__name__)


def short(value: object) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


def listed(names: Iterable[object], *, most: int = 10) -> str:
    """Names for a message: the first ones, and how many more there are."""
    shown = list(map(str, names))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return f"{', '.join(shown[:most])}{more}"


def quoted(names: Iterable[str]) -> str:
    """Names of fields for a message."""
    return listed((f'"{name}"' for name in names), most=20)
