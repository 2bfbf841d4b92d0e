"""What the chart repeats of other files is what they say. Needs no program."""

from __future__ import annotations

import tomllib

import pytest
import yaml
from tests.chart.helm import CHART
from tests.harness.store import ROOT

from finetune_api import GROUP
from finetune_api.crd import RESOURCES

MANIFESTS = ROOT / "manifests"
COPIES = sorted(path.relative_to(CHART / "files") for path in (CHART / "files").rglob("*.*"))
STALE = "stale: run `make generate`"


@pytest.mark.parametrize("copy", COPIES, ids=str)
def test_a_copy_is_the_manifest(copy: str) -> None:
    original = MANIFESTS / copy
    assert original.exists(), STALE
    assert (CHART / "files" / copy).read_bytes() == original.read_bytes(), STALE


@pytest.mark.parametrize("folder", ["crd", "policy", "tenant", "console"])
def test_every_manifest_has_its_copy(folder: str) -> None:
    originals = {path.name for path in (MANIFESTS / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert originals, folder
    assert {path.name for path in (CHART / "files" / folder).iterdir()} == originals, STALE


def test_the_chart_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["name"] == project["name"]
    assert chart["appVersion"] == project["version"]


def test_what_the_chart_says_of_itself_to_a_registry_is_so() -> None:
    """Artifact Hub shows a chart's types and images."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    said = {key: yaml.safe_load(chart["annotations"][f"artifacthub.io/{key}"]) for key in ("crds", "images")}
    assert {(each["kind"], each["name"]) for each in said["crds"]} == {
        (each.kind, f"{each.plural}.{GROUP}") for each in RESOURCES
    }
    repositories = [values[key]["repository"] for key in ("image", "trainerImage", "gatewayImage")]
    assert [each["image"] for each in said["images"]] == [f"{each}:{chart['appVersion']}" for each in repositories]
