"""The structural schema, checked as kube-openapi does: the same order of checks, formats and quirks."""

from __future__ import annotations

import json
from typing import Any, Final

from finetune_operator.validation.decoding import Schema, schema_of_field
from finetune_operator.validation.field_errors import (
    FieldError,
    duplicate,
    go_float,
    invalid,
    not_supported,
    required,
    too_long,
    too_many,
    type_invalid,
)
from finetune_operator.validation.meant_value import meant


class _Absent:
    """There is no old value to compare with."""


ABSENT: Final = _Absent()


def check_schema(value: Any, schema: Schema, path: str, old: Any = ABSENT) -> list[FieldError]:
    """Everything in `value` that breaks the schema.

    With an old value, unchanged parts are not held against the writer (CRD validation ratcheting, KEP-4008).
    """
    errors = [*_own_errors(value, schema, path), *_child_errors(value, schema, path, old)]
    if errors and old is not ABSENT and same(value, old):
        return []
    return errors


def _own_errors(value: Any, schema: Schema, path: str) -> list[FieldError]:
    errors = _type_errors(value, schema, path)
    if isinstance(value, str):
        errors += _string_errors(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        errors += _number_errors(value, schema, path)
    elif isinstance(value, list | dict):
        errors += _count_errors(value, schema, path)
    allowed = schema.get("enum")
    if allowed and not any(value == item and type(value) is type(item) for item in allowed):
        errors.append(not_supported(field=path, value=value, supported=allowed))
    return errors


def _child_errors(value: Any, schema: Schema, path: str, old: Any) -> list[FieldError]:
    errors: list[FieldError] = []
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            errors += check_schema(item, schema["items"], f"{path}[{index}]", old_item(item, schema, old))
    elif isinstance(value, dict):
        for key, item in value.items():
            child = schema_of_field(key, schema)
            if child is not None:
                errors += check_schema(item, child, f"{path}.{key}" if path else key, old_field(key, old))
        for name in schema.get("required", ()):
            if name not in value:
                errors.append(required(field=f"{path}.{name}" if path else name))
    return errors


def _type_errors(value: Any, schema: Schema, path: str) -> list[FieldError]:
    types = ("integer", "string") if schema.get("x-kubernetes-int-or-string") else (schema.get("type"),)
    if types == (None,):
        return []
    found = json_type(value)
    # Beyond 2^53 a JSON number is no exact integer.
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53 and "integer" in types
    if found in types or (found == "integer" and "number" in types) or whole:
        return []
    hint = meant(value, expected=str(types[0]), field=path)
    return [type_invalid(field=path, expected=",".join(str(name) for name in types), found=found, hint=hint)]


def _string_errors(value: str, schema: Schema, path: str) -> list[FieldError]:
    if len(value) > schema.get("maxLength", len(value)):
        return [too_long(field=path, maximum=schema["maxLength"])]
    if len(value) < schema.get("minLength", 0):
        detail = f"{path} in body should be at least {schema['minLength']} chars long"
        return [invalid(field=path, value=value, detail=detail)]
    return []


def _number_errors(value: float, schema: Schema, path: str) -> list[FieldError]:
    errors = []
    if schema.get("type") == "integer" and (not float(value).is_integer() or not -(2**63) <= value < 2**63):
        detail = f"Checked value must be of type integer (default format) in {path}"
        # The apiserver gives this one no path and no value.
        errors.append(invalid(field="<nil>", value="", detail=detail))
    for name, side, sign in (("Maximum", "less", 1), ("Minimum", "greater", -1)):
        bound, exclusive = schema.get(name.lower()), schema.get(f"exclusive{name}", False)
        if bound is not None and (value * sign > bound * sign or (exclusive and value == bound)):
            rule = f"{side} than" if exclusive else f"{side} than or equal to"
            detail = f"{path} in body should be {rule} {_bound(bound, value)}"
            errors.append(invalid(field=path, value=value, detail=detail))
    return errors


def _bound(bound: float, value: float) -> str:
    """The limit as it is compared: as an integer where the value is one."""
    return str(int(bound)) if isinstance(value, int) else go_float(float(bound))


def _count_errors(value: list[Any] | dict[str, Any], schema: Schema, path: str) -> list[FieldError]:
    what = "Items" if isinstance(value, list) else "Properties"
    errors, least, most = [], schema.get(f"min{what}", 0), schema.get(f"max{what}", len(value))
    if len(value) < least:
        detail = f"{path} in body should have at least {least} {what.lower()}"
        errors.append(invalid(field=path, value=len(value), detail=detail))
    if len(value) > most:
        errors.append(too_many(field=path, count=len(value), maximum=most))
    return errors


def check_list_maps(value: Any, schema: Schema | None, path: str) -> list[FieldError]:
    """Lists of type map whose keys occur twice: the second of each is named."""
    if schema is None:
        return []
    errors: list[FieldError] = []
    if isinstance(value, list):
        if schema.get("x-kubernetes-list-type") == "map":
            errors += _duplicate_keys(value, schema["x-kubernetes-list-map-keys"], path)
        for index, item in enumerate(value):
            errors += check_list_maps(item, schema.get("items"), f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            errors += check_list_maps(item, schema_of_field(key, schema), child_path(path, key, schema))
    return errors


def child_path(path: str, key: str, schema: Schema) -> str:
    """Where a field is: a declared one behind a dot, another one in brackets."""
    if key not in schema.get("properties", {}):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _duplicate_keys(items: list[Any], names: list[str], path: str) -> list[FieldError]:
    for index, item in enumerate(items):
        if item is not None and not isinstance(item, dict):
            detail = "must be an object for an array of list-type map"
            return [invalid(field=f"{path}[{index}]", value=item, detail=detail)]
    seen: dict[str, int] = {}
    errors = []
    for index, item in enumerate(items):
        key = {name: item[name] for name in names if name in (item or {})}
        identity = json.dumps(key, sort_keys=True)
        seen[identity] = seen.get(identity, 0) + 1
        if seen[identity] == 2:
            errors.append(duplicate(field=f"{path}[{index}]", value=key))
    return errors


def old_field(key: str, old: Any) -> Any:
    """The old value of a field, where there is one."""
    return old.get(key, ABSENT) if isinstance(old, dict) else ABSENT


def old_item(item: Any, schema: Schema, old: Any) -> Any:
    """The old value of a list's item: by key for lists of type map; items of other lists have no identity."""
    if schema.get("x-kubernetes-list-type") != "map" or not isinstance(old, list) or not isinstance(item, dict):
        return ABSENT
    names = schema["x-kubernetes-list-map-keys"]
    for candidate in old:
        if isinstance(candidate, dict) and all(candidate.get(name) == item.get(name) for name in names):
            return candidate
    return ABSENT


def same(value: Any, old: Any) -> bool:
    """Whether two JSON values are equal, types included."""
    return json.dumps(value, sort_keys=True) == json.dumps(old, sort_keys=True)


def json_type(value: Any) -> str:
    """The JSON type's name."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "integer", float: "number", list: "array", dict: "object"}[type(value)]
