"""Manifests in YAML or JSON, read as kubectl reads them.

PyYAML differs from kubectl's YAML library where it hurts: `1e-4` is a string to it, `2026-01-01` a date, `12:30` a
number, and a key that occurs twice is taken silently.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from finetune_operator.core.ports import Manifest
from finetune_operator.validation.decoding import whole_numbers


class ManifestTextError(Exception):
    """The text is no manifest: the message names file, place and reason."""


class _KubectlLoader(yaml.SafeLoader):
    """YAML 1.1 as kubectl understands it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ManifestTextError(
                        f'line {line}: mapping key "{key.value}" already defined at line {seen[key.value]}'
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep=deep)


_KubectlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in ("timestamp", "float", "int")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_KubectlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
_KubectlLoader.yaml_implicit_resolvers = {
    first: [
        ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")),
        *resolvers,
    ]
    if first in set("-+0123456789")
    else resolvers
    for first, resolvers in _KubectlLoader.yaml_implicit_resolvers.items()
}


def read_manifests(text: str, *, source: str) -> list[Manifest]:
    """The objects of a YAML stream or a JSON text, those of a `List` one by one. Raises ManifestTextError."""
    try:
        documents = list(yaml.load_all(text, Loader=_KubectlLoader))
    except ManifestTextError as error:
        raise ManifestTextError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        raise ManifestTextError(f"{source}: not YAML: {_reason(error)}") from None
    manifests: list[Manifest] = []
    for number, document in enumerate(documents, start=1):
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ManifestTextError(
                f"{source}: document {number} is no object; expected apiVersion, kind, metadata and spec"
            )
        items = document.get("items") if str(document.get("kind", "")).endswith("List") else None
        manifests += [whole_numbers(_string_keys(item)) for item in (items if isinstance(items, list) else [document])]
    if not manifests:
        raise ManifestTextError(f"{source}: no object in it")
    return manifests


def _reason(error: yaml.YAMLError) -> str:
    """Where and why, on one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    found, began = error.problem_mark, error.context_mark
    words = f"line {found.line + 1}, column {found.column + 1}: {error.problem}"
    if error.context is not None:
        words += f", {error.context}"
        if began is not None and began.line != found.line:
            words += f" that begins at line {began.line + 1}"
    return words + (" (indent with spaces)" if "'\\t'" in words else "")


def _string_keys(value: Any) -> Any:
    """JSON has string keys only: `1:` reads "1"."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _string_keys(item) for key, item in value.items()}
    return [_string_keys(item) for item in value] if isinstance(value, list) else value
