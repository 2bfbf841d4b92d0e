"""What installing, upgrading and uninstalling leave on a real kube-apiserver, with each Helm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.chart.cluster import ENDPOINT, JOB, Cluster
from tests.chart.helm import CHART, EARLIER, NAMESPACE, Helm, HelmError
from tests.harness import Kubectl, KubectlError, Object, wait_until
from tests.harness.store import ROOT

KEPT = {"CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
ALL_KINDS = (
    "customresourcedefinitions,validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,"
    "clusterrolebindings,roles,rolebindings,serviceaccounts,services,deployments,networkpolicies,poddisruptionbudgets"
)


@pytest.fixture
def cluster(helm: Helm) -> Iterator[Cluster]:
    """A fresh one for each test."""
    with Cluster.running(helm=helm) as cluster:
        yield cluster


def kinds_of_release(kubectl: Kubectl) -> set[str]:
    """Kinds of the objects that Helm made."""
    return {item["kind"] for item in kubectl.list(ALL_KINDS, selector="app.kubernetes.io/managed-by=Helm")}


def test_install(cluster: Cluster) -> None:
    notes = cluster.helm.install(namespace=cluster.system)
    assert "watches all namespaces" in notes
    assert "WARNING" not in notes
    rendered = {item["kind"] for item in cluster.helm.objects(namespace=cluster.system)}
    assert kinds_of_release(cluster.kubectl) == rendered > KEPT
    account = f"{cluster.system}:finetune-operator"
    assert cluster.may_list_jobs(account, namespace=cluster.team)


def test_upgrade_with_other_values(cluster: Cluster) -> None:
    cluster.helm.install(namespace=cluster.system)
    made = cluster.make_users_work()
    cluster.helm.upgrade({"replicas": 3, "config": {"allowedRoots": ["s3://acme/"]}}, namespace=cluster.system)
    deployment = cluster.deployment(namespace=cluster.system)
    assert deployment["spec"]["replicas"] == 3
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "FINETUNE_ALLOWED_ROOTS", "value": "s3://acme/"} in variables
    assert cluster.users_work() == made


def test_uninstalling_leaves_the_types_the_users_work_and_its_protection(cluster: Cluster) -> None:
    cluster.helm.install(namespace=cluster.system)
    made = cluster.make_users_work()
    cluster.helm.uninstall(namespace=cluster.system)
    assert kinds_of_release(cluster.kubectl) == KEPT
    assert cluster.users_work() == made
    wait_until(lambda: endpoint_is_protected(cluster), what="the endpoint's protection")

    cluster.helm.install({"replicas": 1}, namespace=cluster.system)
    assert cluster.deployment(namespace=cluster.system)["spec"]["replicas"] == 1
    assert cluster.users_work() == made


def test_another_release_takes_over_what_one_has_left(cluster: Cluster) -> None:
    cluster.helm.install(release="red", namespace=cluster.system)
    made = cluster.make_users_work()
    cluster.helm.uninstall(release="red", namespace=cluster.system)
    with pytest.raises(HelmError, match=r'CustomResourceDefinition.*"red"'):
        cluster.helm.install(namespace=cluster.system)
    cluster.helm.install(namespace=cluster.system, options=["--take-ownership"])
    assert cluster.users_work() == made


def endpoint_is_protected(cluster: Cluster) -> bool:
    """Whether the apiserver would refuse to delete the endpoint."""
    try:
        cluster.kubectl.run("delete", "mep", ENDPOINT, f"--namespace={cluster.team}", "--dry-run=server")
    except KubectlError as refusal:
        assert "is protected" in refusal.stderr, refusal.stderr
        return True
    return False


def test_an_upgrade_from_an_earlier_chart_brings_new_fields_of_the_types(cluster: Cluster, tmp_path: Path) -> None:
    """What Helm does not do for the types of a chart's crds/ folder."""
    cluster.helm.install(namespace=cluster.system, chart=EARLIER)
    made = cluster.make_users_work()
    before = cluster.deployment(namespace=cluster.system)
    cluster.helm.upgrade(namespace=cluster.system)
    after = cluster.deployment(namespace=cluster.system)
    assert (after["metadata"]["uid"], after["spec"]["selector"]) == (
        before["metadata"]["uid"],
        before["spec"]["selector"],
    )
    assert cluster.users_work() == made
    assert {item["kind"] for item in cluster.helm.objects(namespace=cluster.system)} == kinds_of_release(
        cluster.kubectl
    )
    rules = cluster.kubectl.get("clusterrole", "finetune-operator-door")["rules"]
    assert {"subjectaccessreviews"} in [set(rule["resources"]) for rule in rules], "rights come with the upgrade"
    assert not is_accepted(cluster, painted_job())
    cluster.helm.upgrade(namespace=cluster.system, chart=chart_with_colours(tmp_path))
    wait_until(lambda: is_accepted(cluster, painted_job()), what="the new field")
    assert cluster.users_work() == made


def painted_job() -> Object:
    """A job with a field that only the next version of the chart knows."""
    job: Object = yaml.safe_load(JOB.read_text())
    return {**job, "metadata": {"name": "painted"}, "spec": {**job["spec"], "colour": "blue"}}


def chart_with_colours(folder: Path) -> Path:
    """The next version of the chart: jobs have a `spec.colour`."""
    chart = shutil.copytree(CHART, folder / CHART.name)
    definition = chart / "files" / "crd" / "finetunejobs.yaml"
    crd = yaml.safe_load(definition.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["colour"] = {"type": "string"}
    definition.write_text(yaml.safe_dump(crd))
    description = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**description, "version": "999.0.0"}))
    return chart


def is_accepted(cluster: Cluster, job: Object) -> bool:
    """Whether the apiserver would take a job; unknown fields are errors."""
    strictly = ("--dry-run=server", "--validate=strict", f"--namespace={cluster.team}")
    try:
        cluster.kubectl.run("create", *strictly, "-f", "-", text=json.dumps(job))
    except KubectlError as refusal:
        assert 'unknown field "spec.colour"' in refusal.stderr, refusal.stderr
        return False
    return True


def test_types_that_a_release_no_longer_installs_stay(cluster: Cluster) -> None:
    cluster.helm.install(namespace=cluster.system)
    made = cluster.make_users_work()
    cluster.helm.upgrade({"crds": {"enabled": False}, "policies": {"enabled": False}}, namespace=cluster.system)
    assert cluster.users_work() == made
    assert kinds_of_release(cluster.kubectl) >= KEPT


def test_a_release_takes_over_the_manifests_and_restarts_nothing(cluster: Cluster) -> None:
    cluster.kubectl.apply(ROOT / "manifests" / "default", server_side=False)
    made = cluster.make_users_work()
    before = cluster.deployment(namespace=NAMESPACE)
    with pytest.raises(HelmError, match="exists and cannot be imported"):
        cluster.helm.install(namespace=NAMESPACE)
    # Helm 4 applies on the server, where the fields are kubectl's.
    options = ["--take-ownership", *(["--force-conflicts"] if cluster.helm.major == 4 else [])]
    cluster.helm.install(namespace=NAMESPACE, options=options)
    after = cluster.deployment(namespace=NAMESPACE)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"]
    assert cluster.users_work() == made


def test_two_releases_each_for_a_namespace(cluster: Cluster) -> None:
    """One has the types. Two in one namespace would share a door, and are refused."""
    other = f"{cluster.system}-other"
    cluster.kubectl.run("create", "namespace", other)
    without_types = {"crds": {"enabled": False}, "namespaces": [cluster.team]}
    cluster.helm.install({"namespaces": [cluster.system]}, release="red", namespace=cluster.system)
    with pytest.raises(HelmError, match=r'CustomResourceDefinition.*"red"'):
        cluster.helm.install({"namespaces": [cluster.team]}, release="blue", namespace=other)
    with pytest.raises(HelmError, match=r'Service "finetune-door".*"red"'):
        cluster.helm.install(without_types, release="blue", namespace=cluster.system)
    cluster.helm.install(without_types, release="blue", namespace=other)

    red, blue = f"{cluster.system}:red-finetune-operator", f"{other}:blue-finetune-operator"
    allowed = {
        (account, namespace): cluster.may_list_jobs(account, namespace=namespace)
        for account in (red, blue)
        for namespace in (cluster.system, cluster.team)
    }
    assert [key for key, may in allowed.items() if may] == [(red, cluster.system), (blue, cluster.team)]
