"""`finetune validate` takes every sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_operator.cli.validate import objections_to
from finetune_operator.validation import read_manifests

SAMPLES = sorted(Path("manifests/samples").glob("*.yaml"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_nothing_speaks_against_it(sample: Path) -> None:
    assert [objections_to(manifest) for manifest in read_manifests(sample.read_text(), source=sample.name)] == [None]


def test_each_runtime_has_a_sample() -> None:
    manifests = [manifest for path in SAMPLES for manifest in read_manifests(path.read_text(), source=path.name)]
    endpoints = [manifest for manifest in manifests if manifest["kind"] == "ModelEndpoint"]
    assert {manifest["spec"]["serving"]["runtime"] for manifest in endpoints} == {"FastAPI", "Transformers", "VLLM"}
