"""metav1.ObjectMeta, decoded and checked as apimachinery does."""

from __future__ import annotations

import re
from typing import Any

from finetune_operator.validation.field_errors import FieldError, go_string, invalid, required

# Field names are matched exactly, as strict decoding does.
_FIELDS: dict[str, tuple[type, str]] = {
    "name": (str, "string"),
    "generateName": (str, "string"),
    "namespace": (str, "string"),
    "selfLink": (str, "string"),
    "uid": (str, "types.UID"),
    "resourceVersion": (str, "string"),
    "generation": (int, "int64"),
    "creationTimestamp": (str, "v1.Time"),
    "deletionTimestamp": (str, "v1.Time"),
    "deletionGracePeriodSeconds": (int, "int64"),
    "labels": (dict, "map[string]string"),
    "annotations": (dict, "map[string]string"),
    "ownerReferences": (list, "[]v1.OwnerReference"),
    "finalizers": (list, "[]string"),
    "managedFields": (list, "[]v1.ManagedFieldsEntry"),
}

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_KEY_NAME = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_ANNOTATION_BYTES = 256 * 1024

_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with"
    f" an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and"
    f" end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_KEY_RULE = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
    f" (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_KEY_NAME}')"
)
_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and"
    f" end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is"
    f" '({_KEY_NAME})?')"
)


def decode_errors(metadata: Any) -> list[FieldError]:
    """Fields of metadata that do not decode: unknown ones, and values of another type."""
    if not isinstance(metadata, dict):
        return [_cannot_decode(found=metadata, field="metadata", expected="v1.ObjectMeta")]
    for name, value in metadata.items():
        if name not in _FIELDS or value is None:
            continue
        expected, go_name = _FIELDS[name]
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            return [_cannot_decode(found=value, field=f"metadata.{name}", expected=go_name)]
        wrong = [item for item in value.values() if not isinstance(item, str)] if isinstance(value, dict) else []
        if wrong:
            return [_cannot_decode(found=wrong[0], field=f"metadata.{name}", expected="string")]
    unknown = sorted(set(metadata) - set(_FIELDS))
    return [FieldError(field=f"metadata.{name}", reason="UnknownField", message="unknown field") for name in unknown]


def _cannot_decode(*, found: Any, field: str, expected: str) -> FieldError:
    go_field = field.removeprefix("metadata.") if field != "metadata" else ""
    where = f"Go struct field ObjectMeta.{go_field}" if go_field else "Go value"
    message = f"json: cannot unmarshal {_json_type(found)} into {where} of type {expected}"
    return FieldError(field="", reason="BadRequest", message=message)


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    names: dict[type[Any], str] = {str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def check_metadata(metadata: dict[str, Any]) -> list[FieldError]:
    """What is wrong with name, namespace, labels and annotations."""
    errors: list[FieldError] = []
    name, prefix = metadata.get("name") or "", metadata.get("generateName") or ""
    if prefix:
        masked = f"{prefix[:-1]}a" if prefix.endswith("-") and len(prefix) > 1 else prefix
        errors += [_invalid("metadata.generateName", prefix, rule) for rule in _subdomain_errors(masked)]
    if name:
        errors += [_invalid("metadata.name", name, rule) for rule in _subdomain_errors(name)]
    elif not prefix:
        errors.append(required(field="metadata.name", detail="name or generateName is required"))
    namespace = metadata.get("namespace") or "default"
    errors += [_invalid("metadata.namespace", namespace, rule) for rule in _label_errors(namespace)]
    for key, value in (metadata.get("labels") or {}).items():
        errors += [_invalid("metadata.labels", key, rule) for rule in _key_errors(key)]
        errors += [_invalid("metadata.labels", value or "", rule) for rule in _value_errors(value or "")]
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        errors += [_invalid("metadata.annotations", key, rule) for rule in _key_errors(key.lower())]
    if sum(len(key.encode()) + len((value or "").encode()) for key, value in annotations.items()) > _ANNOTATION_BYTES:
        message = f"Too long: may not be more than {_ANNOTATION_BYTES} bytes"
        errors.append(FieldError(field="metadata.annotations", reason="FieldValueTooLong", message=message))
    return errors


def check_metadata_update(metadata: dict[str, Any], old: dict[str, Any]) -> list[FieldError]:
    """What an update must not change."""
    return [
        invalid(field=f"metadata.{name}", value=metadata.get(name) or "", detail="field is immutable")
        for name in ("name", "namespace", "uid")
        if metadata.get(name) and old.get(name) and metadata[name] != old[name]
    ]


def _invalid(field: str, value: str, detail: str) -> FieldError:
    return FieldError(field=field, reason="FieldValueInvalid", message=f"Invalid value: {go_string(value)}: {detail}")


def _subdomain_errors(value: str) -> list[str]:
    return [*_longer_than(value, 253), *([] if re.fullmatch(_SUBDOMAIN, value) else [_SUBDOMAIN_RULE])]


def _label_errors(value: str) -> list[str]:
    if re.fullmatch(_LABEL, value):
        return _longer_than(value, 63)
    dotted = re.fullmatch(_SUBDOMAIN, value)
    return [*_longer_than(value, 63), "must not contain dots" if dotted else _LABEL_RULE]


def _key_errors(key: str) -> list[str]:
    *prefixes, name = key.split("/")
    if len(prefixes) > 1:
        return [
            f"a valid label key {_KEY_RULE} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    errors = []
    if prefixes:
        problems = _subdomain_errors(prefixes[0]) if prefixes[0] else ["must be non-empty"]
        errors += [f"prefix part {problem}" for problem in problems]
    problems = _longer_than(name, 63) if name else ["must be non-empty"]
    if not re.fullmatch(_KEY_NAME, name):
        problems.append(_KEY_RULE)
    return errors + [f"name part {problem}" for problem in problems]


def _value_errors(value: str) -> list[str]:
    return [*_longer_than(value, 63), *([] if re.fullmatch(f"({_KEY_NAME})?", value) else [_VALUE_RULE])]


def _longer_than(value: str, maximum: int) -> list[str]:
    return [f"must be no more than {maximum} bytes"] if len(value.encode()) > maximum else []
