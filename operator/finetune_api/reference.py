"""Write the reference of a FineTuneJob's fields: `python -m finetune_api.reference docs/finetunejob.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.crd import RESOURCES, object_schema

_INTRODUCTION = """\
<!-- Generated from operator/finetune_api/finetunejob.py by `make generate`; do not edit. -->
# FineTuneJob: all fields of `spec`

With **\\*** a field is required wherever what it belongs to is given. Complete jobs:
[a chat model](../manifests/samples/topic_router.yaml), [a classifier](../manifests/samples/topic_classifier.yaml), [text to text](../manifests/samples/short_titles_t5.yaml),
[two machines](../manifests/samples/two_nodes.yaml), [two machines with GPUs](../manifests/samples/gpu_nodes.yaml), [QLoRA](../manifests/samples/qlora.yaml),
[FSDP2 with offload](../manifests/samples/offload.yaml), [the next version of an adapter](../manifests/samples/next_version.yaml),
[hub and bucket](../manifests/samples/hub_and_bucket.yaml). What rows of data look like: [Data](training.md#data). `finetune validate -f job.yaml` checks a job; on a cluster
`kubectl explain ftj.spec --recursive` shows the same fields.
"""
_HEADER = "| field | values | meaning |\n|---|---|---|"
# Their fields are Kubernetes' own.
_OF_PODS = ("podTemplate", "resources")


def reference() -> str:
    """The page."""
    (job,) = (resource for resource in RESOURCES if resource.kind == "FineTuneJob")
    spec = object_schema(resource=job)["properties"]["spec"]
    alone = [
        row for name, schema in spec["properties"].items() if not _parts(schema) for row in _rows(name, schema, spec)
    ]
    sections = [_INTRODUCTION, "\n".join([_HEADER, *alone])]
    for name, schema in spec["properties"].items():
        if _parts(schema):
            title = f"\n## {name}{_mark(name, spec)}\n\n{schema['description']}\n"
            sections.append("\n".join([title, _HEADER, *_fields(schema)]))
    return "\n".join(sections) + "\n"


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, field in schema["properties"].items():
        yield from _rows(name, field, schema, path)


def _rows(name: str, field: dict[str, Any], parent: dict[str, Any], path: str = "") -> Iterator[str]:
    meaning = field.get("description", "").replace("|", "\\|")
    yield f"| `{path}{name}`{_mark(name, parent)} | {_values(field)} | {meaning} |"
    if _parts(field) and name not in _OF_PODS:
        inner = f"{path}{name}[]." if "items" in field else f"{path}{name}."
        yield from _fields(field.get("items", field), inner)


def _parts(field: dict[str, Any]) -> bool:
    return "properties" in field.get("items", field)


def _mark(name: str, parent: dict[str, Any]) -> str:
    return " **\\***" if name in parent.get("required", ()) else ""


def _values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "x-kubernetes-int-or-string" in field:
        return "quantity"
    if field["type"] == "array":
        return "list"
    low, high = field.get("minimum"), field.get("maximum")
    above = "above " if field.get("exclusiveMinimum") else "from "
    below = " below " if field.get("exclusiveMaximum") else " to "
    bounds = ("" if low is None else f"{above}{low:,}") + ("" if high is None else f"{below}{high:,}")
    return f"{field['type']} {bounds}".replace("  ", " ").strip()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference())
