"""`compare`: two versions side by side."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.endpoints import V1, canary, served
from tests.wrong_manifests import valid

from finetune_operator.cli.__main__ import main
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.home import LocalHome


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of two versions and an endpoint; the other one has a higher rate, and was measured better."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    cluster = LocalCluster(home=LocalHome.at(".finetune"))
    version = valid("version")
    version["spec"]["training"]["learningRate"] = 0.25
    version["metadata"] |= {"name": "one", "namespace": "default", "uid": V1, "resourceVersion": "1"}
    other = deepcopy(version)
    other["metadata"] |= {"name": "two", "uid": "another"}
    other["spec"]["training"]["learningRate"] = 0.5
    other["spec"]["method"]["onlyHere"] = True
    other["spec"]["evaluation"]["results"][0]["candidate"] += 0.125
    endpoint = canary(stable=served("one", V1)).to_dict()
    endpoint["metadata"] |= {"name": "router", "namespace": "default", "resourceVersion": "1"}
    for each in (version, other, endpoint):
        cluster.store.write(each)
    return version


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in text.splitlines()]


def test_what_differs_is_side_by_side(first: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "one", "two", "--local"]) == 0
    text = capsys.readouterr().out
    shown = lines(text)
    assert ["training.learningRate", "0.25", "0.5"] in shown
    assert ["method.onlyHere", "true"] in shown
    settings = text[text.index("Differs in:") : text.index("Evaluation:")]
    assert len(settings.strip().splitlines()) == 4, "what they agree in is not said"
    row = first["spec"]["evaluation"]["results"][0]
    measured = next(line for line in shown if line[:1] == [row["metric"]])
    assert measured[1::2] == [f"{row['candidate']:.4g}", f"{row['candidate'] + 0.125:.4g}"]
    assert measured[2] == measured[4] == f"{row['low']:+.4g} to {row['high']:+.4g}"
    assert ["Endpoints", "router (stable)"] in shown
    assert "comparable" not in text


def test_for_programs(first: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    other = deepcopy(first)
    other["metadata"]["name"] = "three"
    other["spec"]["data"]["digest"] = "sha256:" + "9" * 64
    LocalCluster(home=LocalHome.at(".finetune")).store.write(other)
    assert main(["compare", "one", "three", "--local", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"] == ["one", "three"]
    assert found["differences"] == {}
    assert found["facts"]["Data"] == [first["spec"]["data"]["digest"], "sha256:" + "9" * 64]
    metric = first["spec"]["evaluation"]["results"][0]["metric"]
    assert [row["metric"] for row in found["evaluation"][metric]] == [metric, metric]
    assert found["notes"] == [
        "their data differ, and so may the held-out examples: values beside each other need not be comparable"
    ]


@pytest.mark.parametrize(
    ("names", "words"), [(("one", "one"), "name two versions"), (("one", "no"), "ModelVersion no was not found")]
)
def test_what_cannot_be_compared(
    first: dict[str, Any], capsys: pytest.CaptureFixture[str], names: tuple[str, str], words: str
) -> None:
    assert main(["compare", *names, "--local"]) == 2
    assert words in capsys.readouterr().err
