"""Every wrong manifest is refused here in the words of the apiserver, without one (tests/api asks the real one)."""

from __future__ import annotations

import pytest
from tests.wrong_manifests import WrongManifest, load_cases, valid

from finetune_operator.validation import validate

# The apiserver says so where a broken structure kept it from evaluating the rules. It is no objection of its own.
NOTICE = "some validation rules were not checked"


@pytest.mark.parametrize("case", load_cases(), ids=lambda case: case.name)
def test_it_is_refused_in_the_same_words(case: WrongManifest) -> None:
    errors = validate(case.manifest, case.before)
    assert {(error.field, error.message) for error in errors if NOTICE not in error.message} == case.expected


@pytest.mark.parametrize("kind", ["job", "version", "endpoint"])
def test_the_right_ones_pass(kind: str) -> None:
    assert validate(valid(kind)) == []
    assert validate(valid(kind), old=valid(kind)) == []


def test_vllm_needs_no_gpus() -> None:
    endpoint = valid("endpoint")
    endpoint["spec"]["serving"] = {"runtime": "VLLM", "gpus": 0}
    assert validate(endpoint) == []
