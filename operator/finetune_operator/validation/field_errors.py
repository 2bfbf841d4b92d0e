"""What is wrong with a field, in the apiserver's words (apimachinery's `field.Error`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from finetune_api import GROUP, VERSION

Reason = Literal[
    "UnknownField",
    "BadRequest",
    "FieldValueRequired",
    "FieldValueInvalid",
    "FieldValueTypeInvalid",
    "FieldValueNotSupported",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueDuplicate",
]
# Errors after which the apiserver does not evaluate CEL rules.
BLOCKING: frozenset[Reason] = frozenset(
    {
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    }
)
# Errors of reading the object, before it is validated: HTTP 400 where the others are 422.
_READING: frozenset[Reason] = frozenset({"UnknownField", "BadRequest"})


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One objection: a path like `spec.data.sources[1].uri`, and the apiserver's message without the path."""

    field: str
    reason: Reason
    message: str
    hint: str = ""
    """How to write what was meant; the apiserver gives none."""

    def __str__(self) -> str:
        if self.reason == "UnknownField":
            return f'unknown field "{self.field}"'
        return f"{self.field}: {self.message}" if self.field else self.message

    def with_hint(self) -> str:
        """For people; the apiserver's own words where there is no hint."""
        return f"{self} (write {self.hint})" if self.hint else str(self)


def required(*, field: str, detail: str = "") -> FieldError:
    """The field must be there."""
    message = "Required value" + (f": {detail}" if detail else "")
    return FieldError(field=field, reason="FieldValueRequired", message=message)


def invalid(*, field: str, value: object, detail: str) -> FieldError:
    """The value breaks a rule."""
    return FieldError(field=field, reason="FieldValueInvalid", message=f"Invalid value: {go_value(value)}: {detail}")


def invalid_structure(*, field: str, detail: str) -> FieldError:
    """An object or a list breaks a CEL rule; the apiserver leaves its value out."""
    return FieldError(field=field, reason="FieldValueInvalid", message=f"Invalid value: {detail}")


def type_invalid(*, field: str, expected: str, found: str, hint: str) -> FieldError:
    """The value has another JSON type than the schema."""
    message = f'Invalid value: {go_string(found)}: {field} in body must be of type {expected}: "{found}"'
    return FieldError(field=field, reason="FieldValueTypeInvalid", message=message, hint=hint)


def not_supported(*, field: str, value: object, supported: Sequence[object]) -> FieldError:
    """The value is none of an enumeration."""
    names = ", ".join(go_string(item if isinstance(item, str) else json.dumps(item)) for item in supported)
    message = f"Unsupported value: {go_value(value)}: supported values: {names}"
    return FieldError(field=field, reason="FieldValueNotSupported", message=message)


def too_long(*, field: str, maximum: int) -> FieldError:
    """The string is too long."""
    message = f"Too long: may not be more than {maximum} {'byte' if maximum == 1 else 'bytes'}"
    return FieldError(field=field, reason="FieldValueTooLong", message=message)


def too_many(*, field: str, count: int, maximum: int) -> FieldError:
    """The list or the map has too many entries."""
    message = f"Too many: {count}: must have at most {maximum} {'item' if maximum == 1 else 'items'}"
    return FieldError(field=field, reason="FieldValueTooMany", message=message)


def duplicate(*, field: str, value: object) -> FieldError:
    """The key of a list of type map occurs twice."""
    return FieldError(field=field, reason="FieldValueDuplicate", message=f"Duplicate value: {go_value(value)}")


def refusal(*, kind: str, name: str, errors: Iterable[FieldError], words: Callable[[FieldError], str] = str) -> str:
    """The message of the apiserver's Status for these errors, as `kubectl` shows it after "Error from server"."""
    messages = list(dict.fromkeys(words(error) for error in errors if error.reason not in _READING))
    reading = [error for error in errors if error.reason in _READING]
    if reading:
        said = ", ".join(words(error) for error in reading)
        strict = "strict decoding error: " if reading[0].reason == "UnknownField" else ""
        return f'{kind} in version "{VERSION}" cannot be handled as a {kind}: {strict}{said}'
    listed = messages[0] if len(messages) == 1 else f"[{', '.join(messages)}]"
    return f'{kind}.{GROUP} "{name}" is invalid: {listed}'


def go_value(value: object) -> str:
    """A value as Go's field errors print it: numbers and booleans plainly, strings quoted, anything else as JSON."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return go_float(value)
    if isinstance(value, str):
        return go_string(value)
    return _go_json(value).replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def go_float(value: float) -> str:
    """A float as Go's %v prints it: the shortest digits, with an exponent below 1e-4 and from 1e6."""
    digits, exponent = _shortest(value)
    if -4 <= exponent < 6:
        return _plain(value)
    return f"{digits}e{exponent:+03d}"


def _go_json(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_go_json(key)}:{_go_json(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_go_json(item) for item in value) + "]"
    if isinstance(value, float):
        digits, exponent = _shortest(value)
        return _plain(value) if -6 <= exponent < 21 else f"{digits}e{exponent:+d}"
    return json.dumps(value, ensure_ascii=False)


def _shortest(value: float) -> tuple[str, int]:
    """The shortest digits that read back as the value, as a mantissa and an exponent of ten."""
    decimal = Decimal(repr(value))
    exponent = decimal.adjusted()
    mantissa = decimal.scaleb(-exponent).normalize()
    return f"{mantissa:f}", exponent


def _plain(value: float) -> str:
    text = f"{Decimal(repr(value)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def go_string(value: str) -> str:
    """A string as Go's %q prints it."""
    return '"' + "".join(_ESCAPES.get(character) or _quoted(character) for character in value) + '"'


_ESCAPES = {
    "\\": r"\\",
    '"': r"\"",
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
}


def _quoted(character: str) -> str:
    code = ord(character)
    if character == " " or (character.isprintable() and not character.isspace()):
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
