"""What the chart repeats of other files is what they say. Needs no program."""

from __future__ import annotations

import tomllib

import pytest
import yaml
from tests.chart.helm import CHART
from tests.harness.store import ROOT

MANIFESTS = ROOT / "manifests"
COPIES = sorted(path.relative_to(CHART / "files") for path in (CHART / "files").rglob("*.*"))
STALE = "stale: run `make generate`"


@pytest.mark.parametrize("copy", COPIES, ids=str)
def test_a_copy_is_the_manifest(copy: str) -> None:
    original = MANIFESTS / copy
    assert original.exists(), STALE
    assert (CHART / "files" / copy).read_bytes() == original.read_bytes(), STALE


@pytest.mark.parametrize("folder", ["crd", "policy", "tenant"])
def test_every_manifest_has_its_copy(folder: str) -> None:
    originals = {path.name for path in (MANIFESTS / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert originals, folder
    assert {path.name for path in (CHART / "files" / folder).iterdir()} == originals, STALE


def test_the_chart_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["name"] == project["name"]
    assert chart["appVersion"] == project["version"]
