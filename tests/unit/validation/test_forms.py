"""Whoever writes a text or a number in the wrong form reads how to write it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.wrong_manifests import valid

from finetune_api.base import FORM
from finetune_api.crd import RESOURCES
from finetune_api.shared_fields import Resources
from finetune_operator.cli.validate import objections_to
from finetune_operator.validation.cel_rules import check_rules
from finetune_operator.validation.meant_value import meant


def nodes_with(key: str, node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a JSON schema that has this key."""
    for name, each in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from nodes_with(key, each, f"{path}.{name}")
    if isinstance(node, dict) and key in node:
        yield path, node


DOCUMENTS = {resource.kind: resource.model.model_json_schema(mode="validation") for resource in RESOURCES}
FORMS = {path: node for kind in DOCUMENTS for path, node in nodes_with(FORM, DOCUMENTS[kind], kind)}


@pytest.mark.parametrize("path", FORMS)
def test_a_form_takes_its_examples_and_names_them_to_others(path: str) -> None:
    form, examples = FORMS[path][FORM], FORMS[path]["examples"]
    schema = {"type": "string", "x-kubernetes-validations": [form]}
    assert [check_rules(example, schema, "spec.field") for example in examples] == [[] for _ in examples]
    refused = check_rules("not / so", schema, "spec.field")
    assert all(json.dumps(example) in refused[0].message for example in examples)


def test_no_pattern_stands_without_words() -> None:
    patterns = {path for kind in DOCUMENTS for path, _ in nodes_with("pattern", DOCUMENTS[kind], kind)}
    assert patterns <= set(FORMS), "use finetune_api.base.form"


def test_quantities_that_an_older_schema_took_can_be_read() -> None:
    manifest = valid("job")
    resources = {"requests": {f"example.com/{number}": 1 for number in range(16)}}
    manifest["spec"]["compute"] = manifest["spec"].get("compute", {}) | {"resources": resources}
    said = objections_to(manifest)
    assert said is not None
    assert "spec.compute.resources.requests" in said
    assert "15" in said
    assert Resources.model_validate(resources).to_dict() == resources


@pytest.mark.parametrize(
    ("field", "expected", "value", "hint"),
    [
        ("spec.rollout.guard.durationSeconds", "integer", "2h30m", "9000"),
        ("spec.failurePolicy.hangSeconds", "integer", "900", "900"),
        ("spec.gateway.limits.bodyBytes", "integer", "4 MiB", "4194304"),
        ("spec.gateway.limits.bodyBytes", "integer", "4MB", "4000000"),
        ("spec.rollout.steps[0].percent", "number", "25%", "25"),
        ("spec.rollout.guard.holdbackPercent", "number", "2.5 %", "2.5"),
        ("spec.data.split.train", "number", "80%", "0.8"),
        ("spec.training.learningRate", "number", "0.0002", "0.0002"),
        ("spec.compute.nodes", "integer", "2", "2"),
        ("spec.compute.nodes", "integer", "1.5", ""),
        ("spec.compute.nodes", "integer", "a few", ""),
        ("spec.rollout.guard.durationSeconds", "integer", "2 fortnights", ""),
        ("spec.suspend", "boolean", "yes", "true"),
        ("spec.suspend", "boolean", "maybe", ""),
        ("spec.model.revision", "string", 12, '"12"'),
        ("spec.compute", "object", "2", ""),
    ],
)
def test_what_was_meant_by_a_value_of_another_type(field: str, expected: str, value: Any, hint: str) -> None:
    assert meant(value, expected=expected, field=field) == hint


def test_validate_says_what_was_meant() -> None:
    manifest = valid("endpoint")
    manifest["spec"]["rollout"]["guard"] = {"durationSeconds": "2h30m"}
    said = objections_to(manifest)
    assert said is not None
    assert 'spec.rollout.guard.durationSeconds in body must be of type integer: "string" (write 9000)' in said
