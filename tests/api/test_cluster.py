"""The Kubernetes Cluster on a real apiserver: the contract of all clusters, and what only this one must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.api.client import open_api
from tests.conformance.cluster_conformance import ClusterConformance, config_map
from tests.harness import ApiServer
from tests.wrong_manifests import valid

from finetune_operator.core.ports import FIELD_MANAGER, Cluster, InvalidError, Manifest, UnavailableError
from finetune_operator.endpoint.settling import differences
from finetune_operator.kube.cluster import KubernetesCluster


@pytest.fixture(scope="module")
def _with_types(crds: ApiServer, controllers: ApiServer) -> ApiServer:
    """Garbage collection starts to look at new types only after a while: types first, then controllers."""
    return controllers


@pytest.fixture
async def cluster(_with_types: ApiServer) -> AsyncIterator[Cluster]:
    async with open_api(_with_types) as api:
        yield KubernetesCluster(api=api, reporter="test-pod")


class TestKubernetesCluster(ClusterConformance):
    """tests/conformance says what."""


async def test_what_others_own_stays_theirs(cluster: Cluster, apiserver: ApiServer, namespace: str) -> None:
    created = await cluster.apply(manifest=config_map(namespace=namespace, data={"ours": "1", "no-more": "1"}))
    apiserver.kubectl.patch("configmap", "settings", {"data": {"theirs": "2"}}, namespace=namespace)
    seen = {"metadata": {"uid": created["metadata"]["uid"]}}
    applied = await cluster.apply(manifest=config_map(namespace=namespace, data={"ours": "3"}, **seen))
    assert applied["data"] == {"ours": "3", "theirs": "2"}
    operations = {entry["operation"] for entry in _entries(applied)}
    assert operations == {"Apply"}, "what was created counts as applied, or it would stay for ever"


async def test_what_others_changed_of_ours_is_seen_and_is_ours_again(
    cluster: Cluster, apiserver: ApiServer, namespace: str
) -> None:
    wanted = config_map(namespace=namespace, data={"ours": "1"})
    created = await cluster.apply(manifest=wanted)
    apiserver.kubectl.patch("configmap", "settings", {"data": {"ours": "9"}}, namespace=namespace)
    live = await cluster.get(kind="ConfigMap", namespace=namespace, name="settings")
    assert live is not None
    assert list(differences(wanted=wanted, live=live)) == [(("data", "ours"), False)]
    seen = {**wanted, "metadata": {**wanted["metadata"], "uid": created["metadata"]["uid"]}}
    again = await cluster.apply(manifest=seen)
    assert again["data"] == {"ours": "1"}
    assert not list(differences(wanted=wanted, live=again))


def _entries(manifest: Manifest) -> list[Manifest]:
    return [each for each in manifest["metadata"]["managedFields"] if each["manager"] == FIELD_MANAGER]


async def test_a_field_that_kubernetes_does_not_know_is_refused(cluster: Cluster, namespace: str) -> None:
    made = await cluster.create(manifest=config_map(namespace=namespace, name="made"))
    seen = config_map(namespace=namespace, name="made", metadata={"uid": made["metadata"]["uid"]})
    for write, manifest in ((cluster.create, config_map(namespace=namespace)), (cluster.apply, seen)):
        with pytest.raises(InvalidError, match=r"bogus"):
            await write(manifest=manifest | {"bogus": 1})


async def test_others_may_change_the_metadata_of_a_revision(
    cluster: Cluster, apiserver: ApiServer, namespace: str
) -> None:
    data = {"z": {"text": 'a <b> & "c"\n\t\\ é 😀\x7f\x85\x9f\u2028\u2029\ufeff\ufffe'}, "a": [1, 2.5, None, True, {}]}
    metadata = {"name": "kept", "namespace": namespace}
    kind = {"apiVersion": "apps/v1", "kind": "ControllerRevision"}
    await cluster.create(manifest={**kind, "metadata": metadata, "revision": 1, "data": data})
    apiserver.kubectl.patch("controllerrevision", "kept", {"metadata": {"labels": {"a": "b"}}}, namespace=namespace)
    apiserver.kubectl.run("annotate", "controllerrevision", "kept", "-n", namespace, "c=d")
    found = await cluster.get(kind="ControllerRevision", namespace=namespace, name="kept")
    assert found is not None
    assert found["data"] == data


async def test_an_event_is_shown_with_its_object(cluster: Cluster, apiserver: ApiServer, namespace: str) -> None:
    job = await cluster.create(manifest=valid("job") | {"metadata": {"name": "router", "namespace": namespace}})
    await cluster.record_event(regarding=job, type="Warning", reason="Retrying", message="attempt 2: node lost")
    (event,) = apiserver.kubectl.list("events", namespace=namespace)
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "Retrying", "attempt 2: node lost")
    assert event["involvedObject"]["uid"] == job["metadata"]["uid"]
    described = apiserver.kubectl.run("describe", "finetunejob", "router", "-n", namespace)
    assert "attempt 2: node lost" in described


async def test_a_namespace_that_ends_is_no_refusal(cluster: Cluster, apiserver: ApiServer) -> None:
    """It must not fail a run: the run is going away with it."""
    with apiserver.namespace_named() as ending:
        stuck = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "stuck", "finalizers": ["test.dev/hold"]},
        }
        apiserver.kubectl.create(stuck, namespace=ending)
        apiserver.kubectl.delete("namespace", ending, wait=False)
        with pytest.raises(UnavailableError, match="being terminated"):
            await cluster.create(manifest=config_map(namespace=ending))
        apiserver.kubectl.patch("configmap", "stuck", {"metadata": {"finalizers": None}}, namespace=ending)


async def test_a_quota_is_no_refusal(cluster: Cluster, apiserver: ApiServer, namespace: str) -> None:
    """It is waited for: an administrator can raise it, or another run can end."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"count/configmaps": "0"}},
    }
    apiserver.kubectl.create(quota, namespace=namespace)
    apiserver.kubectl.wait_for(
        "resourcequota", "small", lambda found: found.get("status", {}).get("used"), namespace=namespace
    )
    with pytest.raises(UnavailableError, match="exceeded quota"):
        await cluster.create(manifest=config_map(namespace=namespace))


async def test_an_admission_policy_is_a_refusal(cluster: Cluster, apiserver: ApiServer, namespace: str) -> None:
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": namespace},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
                ]
            },
            "validations": [{"expression": "object.metadata.name != 'settings'", "reason": "Forbidden"}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": namespace},
        "spec": {
            "policyName": namespace,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}},
        },
    }
    apiserver.kubectl.create([policy, binding])
    try:
        with pytest.raises(InvalidError, match="denied request"):
            async with asyncio.timeout(60):  # the policy takes effect after a moment
                while True:
                    made = await cluster.create(manifest=config_map(namespace=namespace))
                    uid = made["metadata"]["uid"]
                    await cluster.delete(kind="ConfigMap", namespace=namespace, name="settings", uid=uid)
                    await asyncio.sleep(0.05)
    finally:
        apiserver.kubectl.delete("validatingadmissionpolicybinding", namespace)
        apiserver.kubectl.delete("validatingadmissionpolicy", namespace)


async def test_a_child_that_was_created_for_an_earlier_owner_is_taken_over(cluster: Cluster, namespace: str) -> None:
    async def owner(name: str) -> Manifest:
        made = await cluster.create(manifest=config_map(namespace=namespace, name=name))
        known = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": made["metadata"]["uid"]}
        return {"ownerReferences": [{**known, "controller": True, "blockOwnerDeletion": True}]}

    before, after = await owner("before"), await owner("after")
    created = await cluster.apply(manifest=config_map(namespace=namespace, metadata=before))
    seen = {**after, "uid": created["metadata"]["uid"]}
    taken = await cluster.apply(manifest=config_map(namespace=namespace, metadata=seen))
    assert [each["name"] for each in taken["metadata"]["ownerReferences"]] == ["after"]
