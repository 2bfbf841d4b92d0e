"""What the apiserver says about an object of ours: read strictly, then metadata, schema, list keys, CEL rules."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from finetune_api import API_VERSION
from finetune_api.crd import RESOURCES, object_schema
from finetune_operator.core.ports import InvalidError, Manifest
from finetune_operator.validation.decoding import Schema, decode_numbers, drop_nulls, prune
from finetune_operator.validation.field_errors import BLOCKING, FieldError, go_string, refusal
from finetune_operator.validation.meant_field import meant_field
from finetune_operator.validation.object_metadata import check_metadata, check_metadata_update, decode_errors
from finetune_operator.validation.schema import ABSENT, check_list_maps, check_schema

_RULES_SKIPPED = FieldError(
    field="<nil>",
    reason="FieldValueInvalid",
    message="Invalid value: null: some validation rules were not checked because the object was invalid;"
    " correct the existing errors to complete validation",
)


def validate(manifest: Manifest, old: Manifest | None = None) -> list[FieldError]:
    """The apiserver's objections to creating the object, or (with `old`) to replacing the stored one by it.

    `status` is ignored, as the apiserver does where status is a subresource. Objects of other kinds are refused.
    """
    unreadable = _reading_errors(manifest)
    if unreadable:
        return unreadable
    schema = _schema(str(manifest["kind"]))
    return _validate(_stored_form(manifest, schema), None if old is None else _stored_form(old, schema), schema)


def admit(manifest: Manifest, old: Manifest | None = None) -> Manifest:
    """The object as the apiserver stores it. Raises InvalidError with the apiserver's message."""
    errors = validate(manifest, old)
    if errors:
        _refuse(manifest, errors)
    return _stored_form(manifest, _schema(str(manifest["kind"])))


def validate_status(manifest: Manifest, old: Manifest) -> Manifest:
    """The status that the apiserver stores for a write to the status subresource: unknown fields and nulls are dropped.

    Raises InvalidError with the apiserver's message.
    """
    schema: Schema = _schema(str(manifest["kind"]))["properties"].get("status", {})
    pruned, _ = prune(manifest.get("status") or {}, schema, "status")
    status: Manifest = drop_nulls(decode_numbers(pruned), schema)
    previous = old.get("status", ABSENT)
    errors = [*check_schema(status, schema, "status", previous), *check_list_maps(status, schema, "status")]
    errors += [_RULES_SKIPPED] if _blocks_rules(errors) else _rule_errors(status, schema, "status", previous)
    if errors:
        _refuse(manifest, errors)
    return status


def _validate(manifest: Manifest, old: Manifest | None, schema: Schema) -> list[FieldError]:
    metadata = manifest.get("metadata") or {}
    if old is None:
        errors = check_metadata(metadata)
    else:
        errors = [*check_metadata_update(metadata, old.get("metadata") or {}), *check_metadata(metadata)]
    stored: Any = ABSENT if old is None else old
    errors += check_schema(manifest, schema, "", stored)
    errors += check_list_maps(manifest, schema, "")
    if _blocks_rules(errors):
        return [*errors, _RULES_SKIPPED]
    return errors + _rule_errors(manifest, schema, "", stored)


def _rule_errors(value: Any, schema: Schema, path: str, old: Any) -> list[FieldError]:
    # A quarter of the time that a command takes to start.
    from finetune_operator.validation.cel_rules import check_rules

    return check_rules(value, schema, path, old)


def _reading_errors(manifest: Manifest) -> list[FieldError]:
    kind = manifest.get("kind")
    if manifest.get("apiVersion") != API_VERSION or kind not in _kinds():
        identity = f"kind {go_string(str(kind or ''))} in version {go_string(str(manifest.get('apiVersion') or ''))}"
        supported = ", ".join(sorted(_kinds()))
        message = f"no matches for {identity}; expected {supported} in version {go_string(API_VERSION)}"
        return [FieldError(field="", reason="BadRequest", message=message)]
    errors = decode_errors(manifest.get("metadata", {}))
    if errors and errors[0].reason == "BadRequest":
        return errors
    schema = _schema(str(kind))
    _, unknown = prune(manifest, schema)
    return errors + [
        FieldError(field=path, reason="UnknownField", message="unknown field", hint=meant_field(path, schema))
        for path in unknown
    ]


def _stored_form(manifest: Manifest, schema: Schema) -> Manifest:
    """Without status, unknown fields and nulls."""
    pruned, _ = prune({key: value for key, value in manifest.items() if key != "status"}, schema)
    stored: Manifest = drop_nulls(decode_numbers(pruned), schema)
    return stored


def _blocks_rules(errors: list[FieldError]) -> bool:
    return any(error.reason in BLOCKING for error in errors)


def _refuse(manifest: Manifest, errors: list[FieldError]) -> None:
    name = str((manifest.get("metadata") or {}).get("name") or "")
    raise InvalidError(refusal(kind=str(manifest.get("kind")), name=name, errors=errors))


@lru_cache(maxsize=1)
def _kinds() -> frozenset[str]:
    return frozenset(resource.kind for resource in RESOURCES)


@lru_cache(maxsize=8)
def _schema(kind: str) -> Schema:
    return next(object_schema(resource=resource) for resource in RESOURCES if resource.kind == kind)
