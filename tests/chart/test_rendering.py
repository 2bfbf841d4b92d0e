"""What the chart renders to, beside what `kubectl apply -k manifests/default` applies."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.helm import CHART, CI_VALUES, NAMESPACE, RELEASE, Helm, HelmError
from tests.harness import Kubectl, Object
from tests.harness.store import ROOT

HELM_LABELS = {
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
}
KEEP = "helm.sh/resource-policy"
DIGEST = "sha256:" + "0123456789abcdef" * 4
Key = tuple[str, str, str]


@pytest.fixture(scope="session")
def manifests(programs: dict[str, Path]) -> dict[Key, Object]:
    """The objects of manifests/default. Their Namespace is no part of a release: it is there before."""
    kubectl = Kubectl(program=programs["kubectl"], kubeconfig=Path("/dev/null"))
    found = _by_key(list(yaml.safe_load_all(kubectl.run("kustomize", str(ROOT / "manifests" / "default")))))
    del found["Namespace", "", NAMESPACE]
    return found


def _by_key(objects: list[Object]) -> dict[Key, Object]:
    found = {(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in objects}
    assert len(found) == len(objects), "an object is rendered twice"
    return found


def _without_helm(item: Object) -> Object:
    """Without what Helm's custom adds: four labels, and the annotation that keeps an object."""
    plain = copy.deepcopy(item)
    metadata = plain["metadata"]
    for name, own in (("labels", HELM_LABELS), ("annotations", {KEEP})):
        rest = {key: value for key, value in metadata.pop(name, {}).items() if key not in own}
        if rest:
            metadata[name] = rest
    return plain


def test_defaults_are_the_manifests(helm: Helm, manifests: dict[Key, Object]) -> None:
    rendered = _by_key(helm.objects())
    assert sorted(rendered) == sorted(manifests)
    for key, manifest in manifests.items():
        ours, theirs = (yaml.safe_dump(item) for item in (_without_helm(rendered[key]), manifest))
        assert ours == theirs, key


def test_all_objects_bear_the_labels_of_helm(helm4: Helm) -> None:
    for item in helm4.objects({"commonLabels": {"team": "platform"}}):
        assert set(item["metadata"]["labels"]) >= {*HELM_LABELS, "team"}, item["kind"]


@pytest.mark.parametrize("values", [None, *CI_VALUES], ids=lambda path: path.stem if path else "defaults")
def test_lint(helm: Helm, values: Path | None) -> None:
    helm.lint(*([values] if values else []))


def test_two_releases_share_no_object_but_the_types(helm4: Helm) -> None:
    """Beside CRDs, which one of the two has to own, no name of one is a name of the other."""
    one, two = (
        {key for key in _by_key(helm4.objects(release=name, namespace=name)) if key[0] != "CustomResourceDefinition"}
        for name in ("red", "blue")
    )
    assert len(one) == len(two) > 0
    assert one & two == set()


RELEASES: dict[str, tuple[str, tuple[Path, ...]]] = {
    "defaults": (RELEASE, ()),
    "another name": ("red", ()),
    "a name with ours in it": ("finetune-operator-red", ()),
    "the longest name": ("r" * 53, ()),
    **{path.stem: ("blue", (path,)) for path in CI_VALUES},
}


@pytest.fixture(params=list(RELEASES.values()), ids=list(RELEASES))
def release(request: pytest.FixtureRequest, helm4: Helm) -> list[Object]:
    """Releases in a namespace of another name than the manifests'."""
    name, values = request.param
    return helm4.objects(*values, release=name, namespace="elsewhere")


def deployment_of(objects: list[Object], component: str = "operator") -> Object:
    """The Deployment of a component."""
    label = "app.kubernetes.io/component"
    found = [
        each for each in objects if each["kind"] == "Deployment" and each["metadata"]["labels"][label] == component
    ]
    assert len(found) == 1
    return found[0]


def test_every_reference_leads_to_an_object_of_the_release(release: list[Object]) -> None:
    there = {(item["kind"], item["metadata"]["name"]) for item in release}
    deployment = deployment_of(release)
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == "default" or ("ServiceAccount", account) in there
    for item in release:
        if item["kind"].endswith("RoleBinding"):
            assert (item["roleRef"]["kind"], item["roleRef"]["name"]) in there
            assert item["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "elsewhere"}]
        if item["kind"] == "ValidatingAdmissionPolicyBinding":
            assert ("ValidatingAdmissionPolicy", item["spec"]["policyName"]) in there


def test_every_selector_finds_the_pods(release: list[Object]) -> None:
    deployments = [item["spec"] for item in release if item["kind"] == "Deployment"]
    pods = [each["template"]["metadata"]["labels"].items() for each in deployments]
    spread = deployment_of(release)["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
    own = [item for item in release if item["metadata"].get("namespace") == "elsewhere"]
    selectors = [
        *(each["selector"]["matchLabels"] for each in deployments),
        *(item["labelSelector"]["matchLabels"] for item in spread),
        *(item["spec"]["podSelector"]["matchLabels"] for item in own if item["kind"] == "NetworkPolicy"),
        *(item["spec"]["selector"]["matchLabels"] for item in release if item["kind"] == "PodDisruptionBudget"),
        *(_with_selector(item) for item in release if item["kind"] == "Service"),
    ]
    assert all(any(selector.items() <= labels for labels in pods) for selector in selectors)
    monitored = [item["spec"]["selector"]["matchLabels"] for item in release if item["kind"] == "ServiceMonitor"]
    services = [item["metadata"]["labels"] for item in release if item["kind"] == "Service"]
    for selector in monitored:
        assert sum(set(selector.items()) <= set(service.items()) for service in services) == 1


def _with_selector(service: Object) -> dict[str, str]:
    selector: dict[str, str] = service["spec"].get("selector", {})
    return selector


def test_nothing_speaks_of_the_namespace_of_the_manifests(release: list[Object]) -> None:
    assert NAMESPACE not in json.dumps(release)


def test_messages_of_policies_name_the_role_of_the_release(helm4: Helm) -> None:
    rendered = helm4.objects(release="red")
    roles = {item["metadata"]["name"] for item in rendered if item["kind"] == "ClusterRole"}
    policies = json.dumps([item for item in rendered if item["kind"] == "ValidatingAdmissionPolicy"])
    assert "red-finetune-approve" in roles
    assert policies.count("finetune-approve") == policies.count("red-finetune-approve") > 0


def test_rights_do_not_depend_on_the_name(helm4: Helm, manifests: dict[Key, Object]) -> None:
    """The names of the Lease, the door and its authority are fixed in the operator: rules name them as they are."""
    assert _rules(helm4.objects(release="red")) == _rules(list(manifests.values()))


def _rules(objects: list[Object]) -> list[Any]:
    return sorted((item["rules"] for item in objects if item["kind"] in ("Role", "ClusterRole")), key=json.dumps)


def test_named_namespaces_get_the_rights_in_place_of_the_cluster(helm4: Helm) -> None:
    everywhere = helm4.objects()
    some = helm4.objects({"namespaces": ["ml", NAMESPACE]})
    assert _bound(everywhere, "finetune-operator") == [""]
    assert _bound(some, "finetune-operator") == ["ml", NAMESPACE]
    assert _bound(some, "finetune-operator-door") == [""], "token reviews have no namespace"
    assert environment(some)["FINETUNE_NAMESPACES"] == f"ml {NAMESPACE}"


def _bound(objects: list[Object], cluster_role: str) -> list[str]:
    """The namespaces in which a ClusterRole is bound; "" is the whole cluster."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster_role}
    return [item["metadata"].get("namespace", "") for item in objects if item.get("roleRef") == role]


def environment(objects: list[Object]) -> dict[str, str]:
    """The variables of the operator's container that have plain values."""
    deployment = deployment_of(objects)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names)), names
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def test_names_that_look_like_numbers_stay_text(helm4: Helm) -> None:
    values = {"namespaces": ["123"], "priorityClassName": "7", "serviceAccount": {"name": "1e3"}}
    rendered = helm4.objects(values, release="0x1f", namespace="456")
    for item in rendered:
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == "0x1f"
        assert item["metadata"].get("namespace", "456") in ("456", "123")
        for subject in item.get("subjects", []):
            assert (subject["name"], subject["namespace"]) == ("1e3", "456")
    assert environment(rendered)["FINETUNE_NAMESPACES"] == "123"
    pod = deployment_of(rendered)["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("1e3", "7")


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "r.example/trainer:0.1.0"),
        ({"tag": "7"}, "r.example/trainer:7"),
        ({"digest": DIGEST}, f"r.example/trainer@{DIGEST}"),
        ({"tag": "7", "digest": DIGEST}, f"r.example/trainer:7@{DIGEST}"),
    ],
)
def test_an_image_is_named_by_tag_and_digest(helm4: Helm, image: dict[str, str], reference: str) -> None:
    rendered = helm4.objects({"trainerImage": {"repository": "r.example/trainer", **image}})
    assert environment(rendered)["FINETUNE_TRAINER_IMAGE"] == reference


def test_an_account_that_is_not_made_must_be_named(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"name the operator's account in serviceAccount\.name"):
        helm.objects({"serviceAccount": {"create": False}})


def test_the_console_is_that_of_the_manifests(helm: Helm, programs: dict[str, Path]) -> None:
    kubectl = Kubectl(program=programs["kubectl"], kubeconfig=Path("/dev/null"))
    wanted = _by_key(list(yaml.safe_load_all(kubectl.run("kustomize", str(ROOT / "manifests" / "console")))))
    without = _by_key(helm.objects())
    rendered = _by_key(helm.objects({"console": {"enabled": True}}))
    assert {key: _without_helm(item) for key, item in rendered.items() if key not in without} == wanted
    pod = deployment_of(list(rendered.values()), "console")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False


def test_the_console_takes_what_its_values_say(helm4: Helm) -> None:
    rendered = helm4.objects(CI_VALUES[0])
    (container,) = deployment_of(rendered, "console")["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["--allow-actions", "--host=console.example.com"]
    assert container["image"] == deployment_of(rendered)["spec"]["template"]["spec"]["containers"][0]["image"]
    (policy,) = (
        item for item in rendered if item["kind"] == "NetworkPolicy" and item["metadata"]["name"].endswith("-console")
    )
    namespaces = [peer["namespaceSelector"] for peer in policy["spec"]["ingress"][0]["from"]]
    assert namespaces == [{"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}]
    assert [each["port"] for each in policy["spec"]["egress"][0]["ports"]] == [53, 53, 5353, 5353, 16443]


def test_only_types_and_policies_are_kept(helm4: Helm) -> None:
    kept = {item["kind"] for item in helm4.objects() if item["metadata"].get("annotations", {}).get(KEEP) == "keep"}
    assert kept == {
        "CustomResourceDefinition",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    lost = helm4.objects({"crds": {"keep": False}, "policies": {"keep": False}})
    assert [item for item in lost if KEEP in item["metadata"].get("annotations", {})] == []


def test_the_policies_of_tenants_are_those_of_the_manifests(helm: Helm) -> None:
    values = {"tenantPolicies": {"namespaces": ["ml", "research"]}}
    wanted = list(yaml.safe_load_all((ROOT / "manifests" / "tenant" / "network_policies.yaml").read_text()))
    names = {each["metadata"]["name"] for each in wanted}
    found = [each for each in helm.objects(values) if each["metadata"]["name"] in names]
    assert sorted(each["metadata"]["namespace"] for each in found) == ["ml"] * 3 + ["research"] * 3
    assert [each["spec"] for each in found if each["metadata"]["namespace"] == "ml"] == [
        each["spec"] for each in wanted
    ]


def test_all_objects_go_into_another_namespace(helm4: Helm) -> None:
    monitored = {key: {"enabled": True} for key in ("serviceMonitor", "podMonitors", "prometheusRule", "dashboards")}
    there = helm4.objects(monitored, {"namespaceOverride": "platform"}, namespace="elsewhere")
    assert there == helm4.objects(monitored, namespace="platform")


METRICS_PORTS: dict[str, tuple[list[int], list[int]]] = {
    "Open": ([8080], [8443, 8080]),
    "Authenticated": ([8444], [8443, 8444]),
    "Off": ([], [8443]),
}


@pytest.mark.parametrize("metrics", list(METRICS_PORTS))
def test_metrics_are_found_where_the_operator_offers_them(helm4: Helm, metrics: str) -> None:
    """The Service's ports, and those that the policy lets through."""
    monitored = {"serviceMonitor": {"enabled": metrics != "Off"}}
    rendered = helm4.objects({"config": {"metrics": metrics}, **monitored})
    (operator,) = (item["spec"]["template"]["spec"] for item in rendered if item["kind"] == "Deployment")
    (policy,) = (item["spec"] for item in rendered if item["kind"] == "NetworkPolicy")
    services = [item for item in rendered if item["metadata"]["name"].endswith("-metrics")]
    ports = [port for each in services if each["kind"] == "Service" for port in each["spec"]["ports"]]
    served = [port["port"] for port in ports]
    assert (served, [each["ports"][0]["port"] for each in policy["ingress"]]) == METRICS_PORTS[metrics]
    assert {port["targetPort"] for port in ports} <= {each["name"] for each in operator["containers"][0]["ports"]}
    monitors = [item["spec"]["endpoints"] for item in rendered if item["kind"] == "ServiceMonitor"]
    assert [each["port"] for (each,) in monitors] == [port["name"] for port in ports]
    assert [each.get("scheme") for (each,) in monitors] == (
        ["https"] if metrics == "Authenticated" else [None] * len(ports)
    )


def test_an_extra_object_is_a_template(helm4: Helm) -> None:
    objects = helm4.objects(CHART / "ci" / "all-values.yaml", release="red")
    names = {item["metadata"]["name"] for item in objects if item["kind"] in ("PriorityClass", "ConfigMap")}
    assert {"red-training", "tuner-notes"} <= names


@pytest.mark.parametrize("sample", ["argocd/operator.yaml", "flux/operator.yaml"])
def test_the_values_of_gitops_samples_are_the_charts(helm4: Helm, sample: str) -> None:
    documents = list(yaml.safe_load_all((ROOT / "manifests" / "samples" / sample).read_text()))
    spec = documents[-1]["spec"]
    path = spec["source"]["path"] if "source" in spec else spec["chart"]["spec"]["chart"]
    assert (ROOT / path).resolve() == CHART.resolve()
    values = spec["source"]["helm"]["valuesObject"] if "source" in spec else spec["values"]
    assert helm4.objects(values)
