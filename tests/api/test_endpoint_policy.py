"""Who may ask what of a ModelEndpoint: the shipped policies on a real apiserver, with users of flesh and rights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from tests.api.client import open_session
from tests.api.people import POLICIES, Team, endpoint
from tests.harness import ApiServer, KubectlError, wait_until

from finetune_api.modelendpoint import ACTION_ANNOTATIONS, ALLOW_DELETE, APPROVE, PAUSE, REJECT, REQUESTED_BY, ROLLBACK

OPERATOR = "system:serviceaccount:finetune-system:finetune-operator"
VERSION = "7a6f5f0e-0000-4000-8000-000000000007"
OTHER_VERSION = "7a6f5f0e-0000-4000-8000-000000000006"
DECISIONS = (APPROVE, REJECT, ROLLBACK)


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", DECISIONS)
def test_whoever_may_approve_decides_in_his_own_name(team: Team, action: str) -> None:
    team.annotate("alice", {action: VERSION, REQUESTED_BY: "alice"})
    assert team.annotations() == {action: VERSION, REQUESTED_BY: "alice"}


@pytest.mark.parametrize("action", DECISIONS)
def test_a_decision_needs_the_verb(team: Team, action: str) -> None:
    with pytest.raises(
        KubectlError, match=f"bob may not write {action}: that needs the verb approve .* finetune-approve"
    ):
        team.annotate("bob", {action: VERSION, REQUESTED_BY: "bob"})


@pytest.mark.parametrize("action", ACTION_ANNOTATIONS)
@pytest.mark.parametrize("name", ["bob", "Alice", "", None])
def test_nobody_asks_in_another_name(team: Team, action: str, name: str | None) -> None:
    value = "true" if action == PAUSE else VERSION
    said = f"must be the name of whoever writes {action}, and you are alice.*add finetune.dev/requested-by=alice"
    with pytest.raises(KubectlError, match=said):
        team.annotate("alice", {action: value, REQUESTED_BY: name})


def test_an_impersonated_user_is_the_one_who_asks(team: Team) -> None:
    def approve(name: str) -> None:
        annotations = (f"{APPROVE}={VERSION}", f"{REQUESTED_BY}={name}")
        arguments = ("annotate", "mep", "router", "-n", team.namespace, "--as=alice", *annotations)
        team.apiserver.kubectl.run(*arguments)

    with pytest.raises(KubectlError, match="and you are alice, not finetune-test-admin"):
        approve("finetune-test-admin")
    approve("alice")


def test_a_name_of_a_version_is_no_uid(team: Team) -> None:
    said = f"finetune.dev/approve must be the UID of the version meant, not its name: kubectl get -n {team.namespace} "
    with pytest.raises(KubectlError, match=said):
        team.annotate("alice", {APPROVE: "router-7", REQUESTED_BY: "alice"})


def test_editors_pause_and_resume(team: Team) -> None:
    team.annotate("bob", {PAUSE: "true", REQUESTED_BY: "bob"})
    team.annotate("carol", {PAUSE: None})
    assert team.annotations() == {REQUESTED_BY: "bob"}
    with pytest.raises(KubectlError, match=r"finetune.dev/pause must be true; remove the annotation"):
        team.annotate("bob", {PAUSE: "yes", REQUESTED_BY: "bob"})


def test_a_name_without_a_request_is_refused(team: Team) -> None:
    said = "requested-by changes only together with a request"
    with pytest.raises(KubectlError, match=said):
        team.annotate("alice", {REQUESTED_BY: "alice"})
    team.annotate("alice", {APPROVE: VERSION, REQUESTED_BY: "alice"})
    with pytest.raises(KubectlError, match=said):
        team.annotate("bob", {REQUESTED_BY: "bob"})
    team.annotate("bob", {APPROVE: None})
    with pytest.raises(KubectlError, match=said):
        team.annotate("bob", {REQUESTED_BY: "bob"})


def test_the_name_stays_as_long_as_the_request(team: Team) -> None:
    team.annotate("alice", {APPROVE: VERSION, PAUSE: "true", REQUESTED_BY: "alice"})
    with pytest.raises(KubectlError, match=r"remove those as well \(finetune.dev/approve- finetune.dev/pause-\)"):
        team.annotate("bob", {REQUESTED_BY: None})
    team.annotate("bob", {APPROVE: None, PAUSE: None, REQUESTED_BY: None})
    assert team.annotations() == {}


def test_a_pause_does_not_take_over_the_decisions_of_others(team: Team) -> None:
    team.annotate("alice", {APPROVE: VERSION, REQUESTED_BY: "alice"})
    said = r"finetune.dev/approve would then bear the name of bob, .* same command \(finetune.dev/approve-\)"
    with pytest.raises(KubectlError, match=said):
        team.annotate("bob", {PAUSE: "true", REQUESTED_BY: "bob"})
    team.annotate("bob", {PAUSE: "true", REQUESTED_BY: "bob", APPROVE: None})
    assert team.annotations() == {PAUSE: "true", REQUESTED_BY: "bob"}


def test_a_rollback_is_not_held_up_by_what_was_asked_before(team: Team) -> None:
    team.annotate("bob", {PAUSE: "true", REQUESTED_BY: "bob"})
    team.annotate("alice", {ROLLBACK: VERSION, REQUESTED_BY: "alice"})
    team.annotate("alice", {ROLLBACK: OTHER_VERSION, REQUESTED_BY: "alice"})
    assert team.annotations() == {PAUSE: "true", ROLLBACK: OTHER_VERSION, REQUESTED_BY: "alice"}


def test_other_writers_are_not_bothered(team: Team) -> None:
    team.annotate("alice", {APPROVE: VERSION, REQUESTED_BY: "alice"})
    bob = team.user("bob")
    bob.patch("modelendpoint", "router", {"spec": {"serving": {"replicas": 3}}}, namespace=team.namespace)
    bob.patch("modelendpoint", "router", {"metadata": {"labels": {"team": "a"}}}, namespace=team.namespace)
    bob.patch("modelendpoint", "router", {"metadata": {"annotations": {"note": "x"}}}, namespace=team.namespace)
    # What a GitOps tool does: its manifest knows nothing of these annotations.
    manifest = endpoint(namespace=team.namespace)
    del manifest["metadata"]["annotations"]
    for server_side in (True, False):
        bob.apply(manifest, server_side=server_side)
    assert {APPROVE: VERSION, REQUESTED_BY: "alice"}.items() <= team.annotations().items()


def test_the_verb_for_one_endpoint_is_enough_for_that_one(team: Team) -> None:
    rules = [
        {
            "apiGroups": ["finetune.dev"],
            "resources": ["modelendpoints"],
            "resourceNames": ["router"],
            "verbs": ["approve"],
        }
    ]
    metadata = {"name": "approve-router", "namespace": team.namespace}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    team.apiserver.kubectl.create(role)
    team.bind(user="carol", role="approve-router", kind="Role")
    team.apiserver.kubectl.create(endpoint(namespace=team.namespace, name="another"))

    def approved() -> bool:
        try:
            team.annotate("carol", {APPROVE: VERSION, REQUESTED_BY: "carol"})
        except KubectlError as error:
            assert "carol may not write" in error.stderr
            return False
        return True

    wait_until(approved, what="the role to hold")
    with pytest.raises(KubectlError, match=r"ModelEndpoint .*/another: carol may not write finetune.dev/approve"):
        team.annotate("carol", {APPROVE: VERSION, REQUESTED_BY: "carol"}, name="another")


def test_a_new_endpoint_brings_no_forged_request(team: Team) -> None:
    bob = team.user("bob")
    forged = endpoint(namespace=team.namespace, name="new", annotations={APPROVE: VERSION, REQUESTED_BY: "alice"})
    with pytest.raises(KubectlError, match="and you are bob, not alice"):
        bob.create(forged)
    generated = forged | {"metadata": {"generateName": "new-", **forged["metadata"]}}
    del generated["metadata"]["name"]
    with pytest.raises(KubectlError, match="and you are bob, not alice"):
        bob.create(generated)
    with pytest.raises(KubectlError, match="requested-by changes only together with a request"):
        bob.create(endpoint(namespace=team.namespace, name="new", annotations={REQUESTED_BY: "bob"}))
    bob.create(endpoint(namespace=team.namespace, name=f"new-{uuid4().hex[:4]}", annotations={"note": "x"}))


def test_an_administrator_restores_a_backup(team: Team) -> None:
    saved = {APPROVE: VERSION, REQUESTED_BY: "alice"}
    team.apiserver.kubectl.create(endpoint(namespace=team.namespace, name=f"old-{uuid4().hex[:4]}", annotations=saved))


# -- the operator -----------------------------------------------------------------------------------------------------


def test_the_operator_writes_status_and_nothing_else(team: Team) -> None:
    team.annotate("alice", {APPROVE: VERSION, REQUESTED_BY: "alice"})
    stored = team.apiserver.kubectl.get("modelendpoint", "router", namespace=team.namespace)
    stored["metadata"]["annotations"] = {ROLLBACK: VERSION, REQUESTED_BY: "bob"}
    stored["status"] = {"phase": "Canary"}
    replace = ("replace", "--subresource=status", f"--as={OPERATOR}", "-f", "-")
    team.apiserver.kubectl.run(*replace, text=json.dumps(stored))
    written = team.apiserver.kubectl.get("modelendpoint", "router", namespace=team.namespace)
    assert written["status"]["phase"] == "Canary"
    assert team.annotations() == {APPROVE: VERSION, REQUESTED_BY: "alice"}
    with pytest.raises(KubectlError, match='cannot patch resource "modelendpoints"'):
        team.apiserver.kubectl.run(
            "annotate", "mep", "router", "-n", team.namespace, f"--as={OPERATOR}", f"{PAUSE}=true"
        )


# -- deletion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [None, "false", "True"])
def test_deletion_is_refused(team: Team, allowed: str | None) -> None:
    team.annotate("bob", {ALLOW_DELETE: allowed})
    said = r"is protected, .*kubectl annotate -n \S+ modelendpoint router finetune.dev/allow-delete=true"
    with pytest.raises(KubectlError, match=said):
        team.user("bob").delete("modelendpoint", "router", namespace=team.namespace)
    with pytest.raises(KubectlError, match=said):
        team.apiserver.kubectl.delete("modelendpoint", "router", namespace=team.namespace)


def test_deletion_is_allowed_by_the_annotation(team: Team) -> None:
    team.apiserver.kubectl.create(endpoint(namespace=team.namespace, name="done"))
    team.annotate("bob", {ALLOW_DELETE: "true"}, name="done")
    team.user("bob").delete("modelendpoint", "done", namespace=team.namespace)
    assert team.apiserver.kubectl.find("modelendpoint", "done", namespace=team.namespace) is None


async def test_a_whole_collection_is_not_deleted_either(policed: ApiServer, namespace: str) -> None:
    policed.kubectl.create(endpoint(namespace=namespace))
    collection = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/modelendpoints"
    async with open_session(policed) as session, session.delete(collection) as answer:
        assert answer.status == 403
        assert "is protected" in (await answer.json())["message"]
    assert policed.kubectl.find("modelendpoint", "router", namespace=namespace) is not None


def test_a_namespace_takes_its_endpoints_along(policed: ApiServer, controllers: ApiServer) -> None:
    with policed.namespace_named("doomed") as namespace:
        policed.kubectl.create(endpoint(namespace=namespace))
    wait_until(
        lambda: policed.kubectl.find("namespace", namespace) is None,
        what="the end of the namespace",
        explain=lambda: policed.kubectl.run("get", "namespace", namespace, "-o", "yaml"),
    )


def test_an_owner_takes_its_endpoint_along(policed: ApiServer, controllers: ApiServer, namespace: str) -> None:
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"}}
    policed.kubectl.create(owner, namespace=namespace)
    uid = policed.kubectl.get("configmap", "app", namespace=namespace)["metadata"]["uid"]
    manifest = endpoint(namespace=namespace)
    manifest["metadata"]["ownerReferences"] = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "app", "uid": uid}]
    policed.kubectl.create(manifest)
    policed.kubectl.delete("configmap", "app", namespace=namespace)
    wait_until(
        lambda: policed.kubectl.find("modelendpoint", "router", namespace=namespace) is None,
        what="the garbage collection of the endpoint",
    )


# -- the manifests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finetune-endpoint-deletion", "finetune-endpoint-requests"])
def test_the_apiserver_finds_no_fault_in_the_expressions(policed: ApiServer, controllers: ApiServer, name: str) -> None:
    """kube-controller-manager checks their types against our schema."""

    def checked() -> Any:
        policy = policed.kubectl.get("validatingadmissionpolicy", name)
        status = policy.get("status", {})
        return status if status.get("observedGeneration") == policy["metadata"]["generation"] else None

    status = wait_until(checked, what="the type check")
    assert status.get("typeChecking", {}).get("expressionWarnings", []) == []


def test_policies_and_types_speak_of_the_same_annotations() -> None:
    text = (POLICIES / "requests.yaml").read_text()
    assert all(f"'{name}'" in text for name in (*ACTION_ANNOTATIONS, REQUESTED_BY))
    assert f"'{ALLOW_DELETE}'" in (POLICIES / "deletion.yaml").read_text()
    assert "../policy" in yaml.safe_load(Path("manifests/default/kustomization.yaml").read_text())["resources"]
