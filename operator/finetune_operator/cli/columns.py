"""The columns of `get`: those of the CustomResourceDefinitions, so that it shows what kubectl shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from finetune_api.crd import RESOURCES, Column, Resource
from finetune_operator.cli.errors import CommandError
from finetune_operator.cli.sections import Part
from finetune_operator.cli.tables import age
from finetune_operator.core.ports import Manifest
from finetune_operator.core.times import parse_time

_STEP = re.compile(r"\.(?P<key>[A-Za-z0-9]+)|\[(?P<index>\d+)\]|\[\?\(@\.(?P<field>\w+)=='(?P<value>[^']*)'\)\]")


def resource_of(name: str) -> Resource:
    """The resource that a user means: `jobs`, `job`, `ftj`, `finetunejobs`, `finetunejobs.finetune.dev`, ..."""
    wanted = name.lower().partition(".")[0]
    for resource in RESOURCES:
        names = {resource.word, f"{resource.word}s", resource.kind.lower(), resource.plural, resource.short_name}
        if wanted in names:
            return resource
    known = ", ".join(f"{resource.word}s ({resource.short_name})" for resource in RESOURCES)
    raise CommandError(f"there is no kind {name!r}; expected one of {known}")


def resource_part(
    manifests: list[Manifest], *, resource: Resource, wide: bool, with_namespace: bool, now: datetime
) -> Part:
    """Some objects of one kind as a table."""
    columns = [column for column in resource.columns if wide or column.priority == 0]
    header = [*(["NAMESPACE"] if with_namespace else []), "NAME", *(column.name.upper() for column in columns)]
    rows = [
        [
            *([manifest["metadata"]["namespace"]] if with_namespace else []),
            manifest["metadata"]["name"],
            *(_cell(manifest, column=column, now=now) for column in columns),
        ]
        for manifest in manifests
    ]
    return Part(header=header, rows=rows)


def _cell(manifest: Manifest, *, column: Column, now: datetime) -> str:
    value = value_at(manifest, path=column.path)
    if column.type == "date":
        return age(since=parse_time(value), now=now)
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def value_at(manifest: Manifest, *, path: str) -> Any:
    """The value at a JSONPath of the kind that printer columns use; None where there is none."""
    value: Any = manifest
    for step in _steps(path):
        if "key" in step:
            value = value.get(step["key"]) if isinstance(value, dict) else None
        elif "index" in step:
            index = int(step["index"])
            value = value[index] if isinstance(value, list) and index < len(value) else None
        else:
            items = value if isinstance(value, list) else []
            value = next((each for each in items if str(each.get(step["field"])) == step["value"]), None)
        if value is None:
            return None
    return value


def _steps(path: str) -> Iterator[dict[str, str]]:
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            raise ValueError(f"{path}: not a JSONPath that columns may have")
        yield {name: text for name, text in match.groupdict().items() if text is not None}
        position = match.end()
