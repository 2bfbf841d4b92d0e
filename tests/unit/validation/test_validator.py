"""What the fixtures of tests/data/wrong_manifests do not show: metadata, reading, ratcheting, status, messages."""

from __future__ import annotations

from typing import Any

import pytest
from tests.wrong_manifests import Manifest, valid

from finetune_operator.core.ports import InvalidError
from finetune_operator.validation import admit, validate, validate_status


def job(**metadata: Any) -> Manifest:
    manifest = valid("job")
    return manifest | {"metadata": manifest["metadata"] | metadata}


def said(manifest: Manifest, old: Manifest | None = None) -> list[str]:
    return [str(error) for error in validate(manifest, old)]


SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start"
    " and end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
    r" '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"name": "Router"}, f'metadata.name: Invalid value: "Router": {SUBDOMAIN}'),
        ({"name": None}, "metadata.name: Required value: name or generateName is required"),
        ({"name": "a" * 64}, f"<nil>: Invalid value: metadata.name: {'a' * 64} has more than 63 characters"),
        ({"namespace": "a.b"}, 'metadata.namespace: Invalid value: "a.b": must not contain dots'),
        (
            {"labels": {"team": 7}},
            "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string",
        ),
        ({"colour": "red"}, 'unknown field "metadata.colour"'),
    ],
)
def test_metadata(metadata: dict[str, Any], message: str) -> None:
    assert message in said(job(**metadata))


def test_a_name_can_be_left_to_the_cluster() -> None:
    assert validate(job(name=None, generateName="router-")) == []


def test_another_kind_is_refused() -> None:
    (message,) = said({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})
    assert message.startswith('no matches for kind "Pod" in version "v1"; expected FineTuneJob')


def test_rules_are_not_evaluated_on_a_broken_structure() -> None:
    manifest = valid("job")
    manifest["spec"]["method"] = {"type": "LoRa"}
    messages = said(manifest)
    assert any("Unsupported value" in message for message in messages)
    assert messages[-1].startswith("<nil>: Invalid value: null: some validation rules were not checked")


def test_null_fields_are_not_there() -> None:
    manifest = valid("job")
    manifest["spec"]["training"] = None
    assert validate(manifest) == []
    assert "training" not in admit(manifest)["spec"]
    manifest["spec"]["model"]["uri"] = None
    assert "spec.model.uri: Required value" in said(manifest)


def test_an_unchanged_part_that_a_newer_schema_forbids_may_stay() -> None:
    """CRD validation ratcheting: an object made before a rule existed can still be changed elsewhere."""
    stored = valid("job")
    stored["spec"]["training"]["learningRate"] = 100
    assert said(stored) != []
    assert said(stored | {"spec": stored["spec"] | {"suspend": True}}, stored) == []


def test_status_of_a_manifest_is_ignored() -> None:
    assert validate(valid("job") | {"status": {"phase": "Nonsense"}}) == []
    assert "status" not in admit(valid("job") | {"status": {"phase": "Training"}})


def test_status_is_pruned_and_checked() -> None:
    stored = valid("job")
    assert validate_status(stored | {"status": {"phase": "Training", "unknown": 1}}, stored) == {"phase": "Training"}
    with pytest.raises(InvalidError, match=r'status\.phase: Unsupported value: "Trainig": supported values: "Pending"'):
        validate_status(stored | {"status": {"phase": "Trainig"}}, stored)


def test_the_message_of_a_refusal_is_the_apiservers() -> None:
    manifest = valid("job")
    del manifest["spec"]["artifacts"]
    manifest["spec"]["method"]["lora"]["rank"] = 0
    with pytest.raises(InvalidError) as refused:
        admit(manifest)
    message = str(refused.value)
    assert message.startswith('FineTuneJob.finetune.dev "router" is invalid: [')
    assert "spec.artifacts: Required value, " in message
    manifest["spec"]["modle"] = {}
    with pytest.raises(InvalidError) as refused:
        admit(manifest)
    assert str(refused.value) == (
        'FineTuneJob in version "v1alpha1" cannot be handled as a FineTuneJob: strict decoding error:'
        ' unknown field "spec.modle"'
    )
