"""Metrics, alerts and dashboards: what Prometheus says of them, and that they belong together."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests.monitoring.dashboards import dashboards as generated
from manifests.monitoring.reference import page, registries
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, generate_latest
from tests.chart.helm import Helm
from tests.harness import Kubectl
from tests.harness.store import ROOT
from tests.monitoring import (
    FOLDER,
    OF_VLLM,
    dashboards,
    metrics_in,
    panel_queries,
    rule_groups,
    rules,
)
from tests.patience import HANGS_S

from finetune_operator.cli.parser import build_parser

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RUNBOOKS = ROOT / "docs" / "runbooks.md"
TESTS = ROOT / "tests" / "data" / "alerts.yaml"


def promtool(programs: dict[str, Path], *arguments: str | Path, text: str | None = None) -> str:
    """What it says; an error where it is not content."""
    run = subprocess.run(
        [programs["promtool"], *arguments], input=text, capture_output=True, text=True, timeout=HANGS_S, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize("process", ["operator", "gateway", "server"])
def test_metrics_are_named_as_prometheus_wants(programs: dict[str, Path], process: str) -> None:
    registry = registries()[process]
    metrics: Any = list(registry._collector_to_names)
    for metric in metrics:
        if metric._labelnames:  # one without series is not looked at
            metric.labels(*["x" for _ in metric._labelnames])
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    text = generate_latest(registry).decode()
    assert promtool(programs, "check", "metrics", text=text) == ""
    with pytest.raises(AssertionError, match="use base unit"):
        promtool(programs, "check", "metrics", text=text.replace("_seconds", "_milliseconds"))


def test_alerts_fire_when_they_should_and_only_then(programs: dict[str, Path], tmp_path: Path) -> None:
    groups = rule_groups()
    for rule in (rule for group in groups for rule in group["rules"]):
        rule.get("annotations", {}).pop("runbook_url", None)  # what it is, another test says
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(yaml.safe_load(TESTS.read_text())))  # without its anchors
    promtool(programs, "test", "rules", tmp_path / "alerts.yaml")


def test_each_alert_is_seen_firing_and_not_firing() -> None:
    cases = [case for group in yaml.safe_load(TESTS.read_text())["tests"] for case in group["alert_rule_test"]]
    seen = {(case["alertname"], bool(case["exp_alerts"])) for case in cases}
    assert seen == {(name, fires) for name in ALERTS for fires in (True, False)}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_all_that_whoever_is_woken_needs(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"].endswith(f"docs/runbooks.md#{name.lower()}")


def test_each_alert_has_a_section_in_the_runbooks_and_the_other_way_round() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.M) == list(ALERTS)


def test_commands_in_the_runbooks_are_commands() -> None:
    typed = re.findall(r"(?<=[`\n])finetune [^`\n]+", RUNBOOKS.read_text())
    assert len(typed) > 10
    for command in typed:
        build_parser().parse_args(command.split()[1:])


def test_every_metric_that_is_asked_for_exists() -> None:
    there = {rule["record"] for rule in rules() if "record" in rule}
    for registry in registries().values():
        for family in registry.collect():
            ends = ("_bucket", "_sum", "_count") if family.type == "histogram" else ("",)
            there |= {family.name + ("_total" if family.type == "counter" else end) for end in ends}
    asked = {(where, metric) for where, query in panel_queries() for metric in metrics_in(query)}
    asked |= {(rule.get("alert") or rule["record"], metric) for rule in rules() for metric in metrics_in(rule["expr"])}
    assert len(asked) > 100
    assert sorted((where, metric) for where, metric in asked if metric not in there and OF_VLLM not in metric) == []


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    shown = {re.sub("_(bucket|total)$", "", each) for _, query in panel_queries() for each in metrics_in(query)}
    shown |= {re.sub("_(bucket|total)$", "", each) for rule in rules() for each in metrics_in(rule["expr"])}
    names = {family.name for registry in registries().values() for family in registry.collect()}
    assert sorted(names - shown) == [
        "finetune_server_abandoned_requests",
        "finetune_server_info",
        "finetune_server_model_load_seconds",
        "finetune_server_ready",
        "finetune_server_requests_in_flight",
        "finetune_server_truncated_texts",
    ], "show it, or add it here: of a server that is looked at closely"


def test_the_reference_is_current() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == page(), "run `make generate`"


def test_dashboards_are_current() -> None:
    assert {path.name: path.read_text() for path in (FOLDER / "dashboards").iterdir()} == {
        f"{name}.json": text for name, text in generated().items()
    }, "run `make generate`"


def test_dashboards_are_what_grafana_imports() -> None:
    found = dashboards()
    assert len({each["uid"] for each in found.values()}) == len(found) == 4
    for name, dashboard in found.items():
        assert dashboard["title"]
        first, *others = dashboard["templating"]["list"]
        assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
        panels = dashboard["panels"]
        assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
        for asked in [*others, *(panel for panel in panels if panel["type"] != "row")]:
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, name
        for panel in (panel for panel in panels if panel["type"] != "row"):
            targets = panel["targets"]
            assert len({target["refId"] for target in targets}) == len(targets) > 0, panel["title"]
            assert len({target["legendFormat"] for target in targets}) == len(targets), panel["title"]
            assert all(target["expr"] for target in targets)
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
        assert len(set(places)) == len(places), f"{name}: panels lie on each other"
        used = set(
            re.findall(r"\$(\w+)", " ".join(query for where, query in panel_queries() if where.startswith(name)))
        )
        assert used - {"__rate_interval"} == {each["name"] for each in others}, name


def _monitors(helm: Helm) -> list[dict[str, Any]]:
    values = {"serviceMonitor": {"enabled": True}, "podMonitors": {"enabled": True}}
    return [item for item in helm.objects(values) if item["kind"].endswith("Monitor")]


def test_pod_monitors_select_the_pods_of_endpoints(helm4: Helm) -> None:
    """As the operator renders them, in tenants' namespaces. That of the operator's Service: test_rendering.py."""
    monitors = [each for each in _monitors(helm4) if each["kind"] == "PodMonitor"]
    assert [each["spec"]["namespaceSelector"] for each in monitors] == [{"any": True}] * 2
    selected = {
        (monitor["metadata"]["name"], file)
        for monitor in monitors
        for file, template in _templates()
        if monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        if {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        <= {port["name"] for each in template["spec"]["containers"] for port in each.get("ports", ())}
    }
    assert selected == {
        ("finetune-gateways", "gateway.yaml"),
        ("finetune-servers", "servers_transformers.yaml"),
        ("finetune-servers", "servers_vllm.yaml"),
    }
    for _, template in _templates():
        labels = template["metadata"]["labels"]
        asked = {source for monitor in monitors for source in _labels_of_pods(monitor, labels=labels)}
        named = {f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9]', '_', label)}" for label in labels}
        assert asked <= named


def _labels_of_pods(monitor: dict[str, Any], *, labels: dict[str, str]) -> list[str]:
    """The labels of pods that targets take over, where the monitor selects pods with these."""
    if not monitor["spec"]["selector"]["matchLabels"].items() <= labels.items():
        return []
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    return [source for each in endpoints for rule in each["relabelings"] for source in rule["sourceLabels"]]


def _templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of tests/data/golden, and the pods of the Deployments in them."""
    for path in sorted((ROOT / "tests" / "data" / "golden").glob("*.yaml")):
        for found in yaml.safe_load_all(path.read_text()):
            for each in found if isinstance(found, list) else [found]:
                for manifest in [each, *each.get("data", {}).get("manifests", ())]:
                    if manifest.get("kind") == "Deployment":
                        yield path.name, manifest["spec"]["template"]


def test_two_namespaces_are_all_that_is_scraped(helm4: Helm) -> None:
    found = helm4.objects({"podMonitors": {"enabled": True}, "namespaces": ["ml", "research"]})
    selectors = [each["spec"]["namespaceSelector"] for each in found if each["kind"] == "PodMonitor"]
    assert selectors == [{"matchNames": ["ml", "research"]}] * 2


def test_dashboards_and_rules_are_those_of_the_manifests(helm: Helm) -> None:
    values = {"dashboards": {"enabled": True}, "prometheusRule": {"enabled": True}}
    rendered = helm.objects(values)
    (rule,) = (each for each in rendered if each["kind"] == "PrometheusRule")
    assert rule["spec"]["groups"] == rule_groups()
    shown = [each for each in rendered if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    texts = {name: text for each in shown for name, text in each["data"].items()}
    assert texts == {path.name: path.read_text() for path in (FOLDER / "dashboards").iterdir()}


def test_kustomize_makes_the_same(programs: dict[str, Path], helm4: Helm) -> None:
    every = ("serviceMonitor", "podMonitors", "prometheusRule", "dashboards")
    kubectl = Kubectl(program=programs["kubectl"], kubeconfig=Path("/dev/null"))
    made = list(yaml.safe_load_all(kubectl.run("kustomize", str(FOLDER))))
    without = {(each["kind"], each["metadata"]["name"]) for each in helm4.objects()}
    rendered = helm4.objects({name: {"enabled": True} for name in every})
    assert {(each["kind"], each["metadata"]["namespace"], each["metadata"]["name"]) for each in made} == {
        (each["kind"], each["metadata"]["namespace"], each["metadata"]["name"])
        for each in rendered
        if (each["kind"], each["metadata"]["name"]) not in without
    }


def test_alerts_lead_where_the_values_say(helm4: Helm) -> None:
    wiki = "https://wiki.example.com/x"
    (rule,) = (
        each
        for each in helm4.objects({"prometheusRule": {"enabled": True, "runbookUrl": wiki}})
        if each["kind"] == "PrometheusRule"
    )
    urls = {
        each["annotations"]["runbook_url"]
        for group in rule["spec"]["groups"]
        for each in group["rules"]
        if "alert" in each
    }
    assert urls == {f"{wiki}#{name.lower()}" for name in ALERTS}


def test_monitors_are_those_of_the_manifests(helm: Helm) -> None:
    rendered = {each["metadata"]["name"]: each["spec"] for each in _monitors(helm)}
    wanted = yaml.safe_load_all((FOLDER / "monitors.yaml").read_text())
    assert rendered == {each["metadata"]["name"]: each["spec"] for each in wanted}
    assert rendered["finetune-operator"]["endpoints"][0]["honorLabels"] is True
