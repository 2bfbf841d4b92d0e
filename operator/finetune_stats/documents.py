"""Reading stored states back: plain JSON values in, numbers out, errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Mapping

Document = Mapping[str, object]


def check_version(document: Document, *, of: str, expected: int) -> None:
    """Raise ValueError unless the document was written by this version of the state `of`."""
    if document.get("version") != expected:
        raise ValueError(f"{of} has version {document.get('version')!r}; expected {expected}")


def number(document: Document, key: str) -> float:
    """The number under `key`. Raises ValueError where it is missing or something else."""
    value = document.get(key)
    if not isinstance(value, int | float):
        raise ValueError(f"stored state: {key} must be a number; got {value!r}")
    return float(value)


def numbers(document: Document, key: str) -> tuple[float, ...]:
    """The list of numbers under `key`. Raises ValueError where it is missing or something else."""
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
        raise ValueError(f"stored state: {key} must be a list of numbers; got {value!r}")
    return tuple(float(item) for item in value)


def section(document: Document, key: str) -> Document:
    """The object under `key`. Raises ValueError where it is missing or something else."""
    value = document.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"stored state: {key} must be an object; got {value!r}")
    return value
