"""What the chart renders, before a real kube-apiserver that takes no unknown field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chart.cluster import RESTRICTED, wait_for_type
from tests.chart.helm import CI_VALUES, Helm
from tests.harness import ApiServer, Kubectl, KubectlError, MissingPrerequisite, Object, tools
from tests.patience import HANGS_S

PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator"
MONITORING = ("servicemonitors", "podmonitors", "prometheusrules")


@pytest.fixture(scope="module")
def apiserver(programs: dict[str, Path]) -> Iterator[ApiServer]:
    """One for all tests here: they only ask it."""
    with ApiServer.running() as server:
        yield server


@pytest.fixture(scope="module")
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """A namespace for releases."""
    with apiserver.namespace_named("tuner", labels=RESTRICTED) as name:
        yield name


@pytest.fixture(scope="module")
def monitored(apiserver: ApiServer) -> ApiServer:
    """With the CustomResourceDefinitions of what the Prometheus Operator is told, as it ships them."""
    try:
        sources = tools.source_folder("prometheus-operator", module=PROMETHEUS_OPERATOR)
    except MissingPrerequisite as missing:
        pytest.skip(str(missing))
    for kind in MONITORING:
        type_ = sources / "example" / "prometheus-operator-crd" / f"monitoring.coreos.com_{kind}.yaml"
        apiserver.kubectl.apply(type_.read_text())
        wait_for_type(apiserver.kubectl, f"{kind}.monitoring.coreos.com")
    return apiserver


def ask(kubectl: Kubectl, objects: list[Object]) -> list[str]:
    """The names of the objects, if the apiserver would take them. Its warnings, Pod Security's for one, are errors."""
    strictly = ("--server-side", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "--output=name")
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    return kubectl.run("apply", *strictly, "-f", "-", text=text, timeout_s=HANGS_S).split()


@pytest.mark.parametrize("values", [None, *CI_VALUES], ids=lambda path: path.stem if path else "defaults")
def test_all_objects_are_accepted(helm4: Helm, monitored: ApiServer, namespace: str, values: Path | None) -> None:
    objects = helm4.objects(*([values] if values else []), namespace=namespace)
    assert len(ask(monitored.kubectl, objects)) == len(objects)


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        ("Deployment", "spec.template.spec.nodeselector", 'unknown field "nodeselector"'),
        ("Deployment", "spec.template.spec.hostNetwork", "violate PodSecurity"),
        ("ServiceMonitor", "spec.selectors", 'unknown field "selectors"'),
        ("PrometheusRule", "spec.rules", 'unknown field "rules"'),
    ],
)
def test_a_wrong_field_would_be_noticed(
    helm4: Helm, monitored: ApiServer, namespace: str, kind: str, path: str, words: str
) -> None:
    """The test above can fail."""
    values = {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}
    objects = helm4.objects(values, namespace=namespace)
    (wrong,) = (item for item in objects if item["kind"] == kind)
    *parents, field = path.split(".")
    part = wrong
    for parent in parents:
        part = part[parent]
    part[field] = True
    with pytest.raises(KubectlError) as refusal:
        ask(monitored.kubectl, [wrong])
    assert words in refusal.value.stderr
