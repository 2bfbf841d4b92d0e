"""What `kubectl explain` says of a field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.crd import RESOURCES, object_schema
from finetune_api.reference import reference


def fields_of(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field below a node of the schema."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields_of(field, f"{path}.{name}")
    if "items" in schema:
        yield from fields_of(schema["items"], f"{path}[]")


@pytest.mark.parametrize("kind", [resource.kind for resource in RESOURCES])
def test_every_field_is_described_by_more_than_its_default(kind: str) -> None:
    schema = next(object_schema(resource=each) for each in RESOURCES if each.kind == kind)
    fields = {path: field for path, field in fields_of(schema, "") if path != ".metadata"}
    said = {
        path: re.sub(r"Default:? [^;]*", "", field.get("description", "")).strip(" .") for path, field in fields.items()
    }
    assert [path for path, words in said.items() if not words] == []


def test_the_page_of_a_jobs_fields_is_up_to_date() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "finetunejob.md"
    assert page.read_text() == reference(), "run `make generate`"


@pytest.mark.parametrize("kind", [resource.kind for resource in RESOURCES])
def test_percentages_are_not_called_shares(kind: str) -> None:
    schema = next(object_schema(resource=each) for each in RESOURCES if each.kind == kind)
    fields = dict(fields_of(schema["properties"]["spec"], "spec"))
    assert [
        path for path, field in fields.items() if path.lower().endswith("percent") and "Share" in field["description"]
    ] == []
