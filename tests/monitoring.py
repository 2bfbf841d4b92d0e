"""The monitoring of the manifests as the tests look at it: rules, dashboards, and the queries in both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.harness.store import ROOT

FOLDER = ROOT / "manifests" / "monitoring"
OF_VLLM = "vllm:"
"""What names of vLLM's metrics begin with: its server is not here to ask."""
_VARIABLES = {"$__rate_interval": "5m", "$namespace": ".*", "$name": ".*", "$interval": "5m"}
_METRIC = re.compile(r"(?<![\w:])(?:endpoint:)?(?:finetune_\w+|vllm:\w+)(?::\w+)?")


def rule_groups() -> list[dict[str, Any]]:
    """Of the PrometheusRule."""
    found: list[dict[str, Any]] = yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]["groups"]
    return found


def rules() -> list[dict[str, Any]]:
    """All rules, recorded ones first."""
    return [rule for group in rule_groups() for rule in group["rules"]]


def dashboards() -> dict[str, dict[str, Any]]:
    """By the name of their file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))}


def panel_queries() -> Iterator[tuple[str, str]]:
    """Dashboard and panel, and PromQL as it stands in the file."""
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            yield from ((f"{name}: {panel['title']}", target["expr"]) for target in panel.get("targets", ()))
        yield from ((f"{name}: {each['name']}", each["expr"]) for each in dashboard["annotations"]["list"])


def filled_in(query: str, **values: str) -> str:
    """A panel's query with Grafana's variables filled in."""
    for variable, value in (_VARIABLES | {f"${name}": value for name, value in values.items()}).items():
        query = query.replace(variable, value)
    return query


def metrics_in(query: str) -> set[str]:
    """The metrics that a query asks for."""
    return set(_METRIC.findall(query))
