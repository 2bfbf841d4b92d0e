"""The CEL rules of the schema (`x-kubernetes-validations`), evaluated as the apiserver does."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from finetune_operator.validation.cel_functions import FUNCTIONS, with_list_functions
from finetune_operator.validation.decoding import Schema, schema_of_field, whole_numbers
from finetune_operator.validation.field_errors import FieldError, invalid, invalid_structure
from finetune_operator.validation.schema import ABSENT, child_path, old_field, old_item, same

_OLD_SELF = re.compile(r"\boldSelf\b")
_STRING_LITERAL = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"")
# Names that CEL reserves; the apiserver offers such fields in this form.
_RESERVED = frozenset(
    re.findall(
        r"\w+",
        "true false null in as break const continue else for function if import let loop package namespace return var"
        " void while",
    )
)
_LONGEST_MESSAGE = 5 * 1024
_OBJECT_META = {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}}


def check_rules(value: Any, schema: Schema, path: str = "", old: Any = ABSENT) -> list[FieldError]:
    """Every rule of the schema that `value` breaks. Rules over `oldSelf` apply only where there is an old value.

    With an old value, an unchanged part is not held against the writer, except by rules over `oldSelf`.
    """
    if value is None:
        return []
    errors = _own_errors(value, schema, path, old)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            errors += check_rules(item, schema["items"], f"{path}[{index}]", old_item(item, schema, old))
    elif isinstance(value, dict):
        for key, item in value.items():
            child = schema_of_field(key, schema)
            if child is not None:
                errors += check_rules(item, child, child_path(path, key, schema), old_field(key, old))
    return errors


def _own_errors(value: Any, schema: Schema, path: str, old: Any) -> list[FieldError]:
    rules = schema.get("x-kubernetes-validations", ())
    if not rules:
        return []
    variables = {"self": _to_cel(value, schema, is_root=not path)}
    if old is not ABSENT:
        variables["oldSelf"] = _to_cel(old, schema, is_root=not path)
    unchanged = old is not ABSENT and same(value, old)
    errors = []
    for rule in rules:
        transition = _uses_old_self(rule["rule"])
        if (transition and old is ABSENT) or (unchanged and not transition):
            continue
        # The apiserver names the root `<nil>`: it has no path.
        field = path or "<nil>"
        message = str(rule.get("message") or "").strip()
        try:
            if _program(rule["rule"]).evaluate(variables):
                continue
        except CELEvalError as error:
            detail = f"{error.args[0]} evaluating rule: {message or rule['rule'].strip()}"
            errors.append(invalid(field=field, value=schema.get("type", ""), detail=detail))
            continue
        detail = _expressed(rule, variables) or message or f"failed rule: {rule['rule'].strip()}"
        if isinstance(value, dict | list):
            errors.append(invalid_structure(field=field, detail=detail))
        else:
            errors.append(invalid(field=field, value=value, detail=detail))
    return errors


def _expressed(rule: dict[str, str], variables: dict[str, Any]) -> str:
    """What the rule's expression makes its message; empty where there is none, or it is no line of text."""
    try:
        said = str(_program(rule["messageExpression"]).evaluate(variables)).strip()
    except (KeyError, CELEvalError):
        return ""
    return said if len(said.encode()) <= _LONGEST_MESSAGE and not re.search(r"[\r\n]", said) else ""


@lru_cache(maxsize=512)
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(with_list_functions(environment.compile(rule)), functions=dict(FUNCTIONS))


@lru_cache(maxsize=512)
def _uses_old_self(rule: str) -> bool:
    return _OLD_SELF.search(_STRING_LITERAL.sub("", rule)) is not None


class _Object(celtypes.MapType):
    """An object. Two are equal when their JSON is; cel-python's own maps refuse to compare values of unlike types."""

    def __init__(self, fields: dict[Any, Any], plain: dict[str, Any]) -> None:
        super().__init__(fields)
        self.plain = plain

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and same(whole_numbers(self.plain), whole_numbers(other.plain))

    def __ne__(self, other: object) -> bool:
        return not (self == other)


def _to_cel(value: Any, schema: Schema | None, *, is_root: bool = False) -> Any:
    """JSON as the CEL types that the schema declares: a whole number in a `number` field is a double, not an int."""
    declared = None if schema is None else schema.get("type")
    if isinstance(value, dict):
        fields = {}
        for key, item in value.items():
            child = _OBJECT_META if is_root and key == "metadata" else schema_of_field(key, schema)
            is_property = schema is not None and key in schema.get("properties", {})
            name = f"__{key}__" if is_property and key in _RESERVED else key
            fields[celtypes.StringType(name)] = _to_cel(item, child)
        return _Object(fields, value)
    if isinstance(value, list):
        items = None if schema is None else schema.get("items")
        return celtypes.ListType([_to_cel(item, items) for item in value])
    if declared == "number" and not isinstance(value, bool):
        return celtypes.DoubleType(value)
    if declared == "integer" and isinstance(value, float):
        return CELEvalError("invalid data, expected int, got float64")
    return json_to_cel(value)
