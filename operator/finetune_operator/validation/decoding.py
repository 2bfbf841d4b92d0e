"""What the apiserver does with an object before it validates it: unknown fields are found, nulls dropped."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
_META_FIELDS = frozenset({"apiVersion", "kind", "metadata"})


def prune(value: Any, schema: Schema | None, path: str = "") -> tuple[Any, list[str]]:
    """A copy without the fields that the schema does not know, and the paths of those, sorted."""
    unknown: list[str] = []
    pruned = _prune(value, schema, path, unknown)
    return pruned, sorted(unknown)


def _prune(value: Any, schema: Schema | None, path: str, unknown: list[str]) -> Any:
    open_ended = schema is not None and schema.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(value, list):
        if open_ended:
            return value
        items = None if schema is None else schema.get("items")
        return [_prune(item, items, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        child = f"{path}.{key}" if path else key
        field_schema = schema_of_field(key, schema)
        if not path and key in _META_FIELDS:
            kept[key] = item
        elif field_schema is not None:
            kept[key] = _prune(item, field_schema, child, unknown)
        elif open_ended:
            kept[key] = item
        else:
            unknown.append(child)
    return kept


def decode_numbers(value: Any) -> Any:
    """A copy in which integers that do not fit into 64 bits are floats, as Go's JSON reads them."""
    if isinstance(value, dict):
        return {key: decode_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode_numbers(item) for item in value]
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def whole_numbers(value: Any) -> Any:
    """A copy in which whole floats are integers: `3.0` reads 3 after a way through Go's JSON."""
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else value


def drop_nulls(value: Any, schema: Schema | None) -> Any:
    """A copy without the null fields that the schema declares: for the apiserver they are not there."""
    if isinstance(value, list):
        items = None if schema is None else schema.get("items")
        return [drop_nulls(item, items) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        field_schema = schema_of_field(key, schema)
        if item is None and field_schema is not None:
            continue
        kept[key] = drop_nulls(item, field_schema)
    return kept


def schema_of_field(name: str, schema: Schema | None) -> Schema | None:
    """The schema of a property or of a map's values; None where neither is declared."""
    if schema is None:
        return None
    declared: Schema | None = schema.get("properties", {}).get(name)
    additional: Schema | None = schema.get("additionalProperties")
    return declared if declared is not None else additional
