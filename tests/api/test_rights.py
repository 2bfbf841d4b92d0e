"""What the committed RBAC gives: to the operator no more than it needs, to users what the built-in roles promise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.harness import ApiServer, KubectlError, wait_until

OPERATOR = "system:serviceaccount:finetune-system:finetune-operator"
OWN, OTHER = "finetune-system", "team-a"


@pytest.fixture(scope="module")
def installed(controllers: ApiServer) -> Iterator[ApiServer]:
    """With controllers: they aggregate the users' roles."""
    controllers.kubectl.apply(Path("manifests/crd"))
    controllers.kubectl.apply(Path("manifests/rbac"))
    if controllers.kubectl.find("namespace", OTHER) is None:
        controllers.kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHER}})
    yield controllers


def can(apiserver: ApiServer, verb: str, resource: str, *, namespace: str, user: str = OPERATOR) -> bool:
    """Whether a user may. `resource` is `plural[.group][/subresource][:name]`."""
    path, _, name = resource.partition(":")
    path, _, subresource = path.partition("/")
    plural, _, group = path.partition(".")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": subresource,
        "name": name,
        "namespace": namespace,
    }
    groups = ["system:authenticated"]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
    }
    answer = apiserver.kubectl.run("create", "-f", "-", "-o", "jsonpath={.status.allowed}", text=json.dumps(review))
    return answer == "true"


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("list", "finetunejobs.finetune.dev", OTHER),
        ("update", "finetunejobs.finetune.dev/status", OTHER),
        ("create", "modelversions.finetune.dev", OTHER),
        ("watch", "modelendpoints.finetune.dev", OTHER),
        ("update", "modelendpoints.finetune.dev/status", OTHER),
        ("delete", "modelversions.finetune.dev", OTHER),
        ("patch", "deployments.apps", OTHER),
        ("list", "replicasets.apps", OTHER),
        ("create", "controllerrevisions.apps", OTHER),
        ("patch", "configmaps", OTHER),
        ("create", "roles.rbac.authorization.k8s.io", OTHER),
        ("create", "jobs.batch", OTHER),
        ("delete", "jobs.batch", OTHER),
        ("watch", "pods", OTHER),
        ("create", "configmaps", OTHER),
        ("get", "configmaps", OTHER),
        ("create", "events.events.k8s.io", OTHER),
        ("create", "tokenreviews.authentication.k8s.io", OTHER),
        ("get", "secrets:finetune-door-ca", OWN),
        ("update", "leases.coordination.k8s.io:finetune-operator", OWN),
        ("patch", "endpointslices.discovery.k8s.io:finetune-door", OWN),
    ],
)
def test_the_operator_may(installed: ApiServer, verb: str, resource: str, namespace: str) -> None:
    assert can(installed, verb, resource, namespace=namespace)


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("list", "secrets", OTHER),
        ("get", "secrets", OTHER),
        ("list", "secrets", OWN),
        ("get", "secrets:somebody-elses", OWN),
        ("delete", "secrets:finetune-door-ca", OWN),
        ("create", "secrets", OTHER),
        ("update", "leases.coordination.k8s.io:another", OWN),
        ("update", "finetunejobs.finetune.dev", OTHER),
        ("patch", "finetunejobs.finetune.dev", OTHER),
        ("delete", "finetunejobs.finetune.dev", OTHER),
        ("update", "modelversions.finetune.dev", OTHER),
        ("update", "modelendpoints.finetune.dev", OTHER),
        ("patch", "modelendpoints.finetune.dev", OTHER),
        ("delete", "modelendpoints.finetune.dev", OTHER),
        ("approve", "modelendpoints.finetune.dev", OTHER),
        ("create", "pods", OTHER),
        ("create", "pods/exec", OTHER),
        ("update", "configmaps", OTHER),
        ("list", "services", OTHER),
        ("create", "replicasets.apps", OTHER),
        ("escalate", "roles.rbac.authorization.k8s.io", OTHER),
        ("bind", "roles.rbac.authorization.k8s.io", OTHER),
        ("bind", "clusterroles.rbac.authorization.k8s.io", OTHER),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io", OTHER),
        ("list", "serviceaccounts", OTHER),
        ("list", "nodes", OTHER),
        ("create", "serviceaccounts/token", OTHER),
        ("create", "clusterroles.rbac.authorization.k8s.io", OTHER),
        ("list", "customresourcedefinitions.apiextensions.k8s.io", OTHER),
        ("list", "namespaces", OTHER),
    ],
)
def test_the_operator_may_not(installed: ApiServer, verb: str, resource: str, namespace: str) -> None:
    assert not can(installed, verb, resource, namespace=namespace)


def test_the_operator_gives_a_gateway_the_routes_and_no_more(installed: ApiServer) -> None:
    def role(*verbs: str, resource: str = "configmaps") -> str:
        rules = [{"apiGroups": [""], "resources": [resource], "resourceNames": ["router-routes"], "verbs": verbs}]
        manifest = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": rules}
        return json.dumps(manifest | {"metadata": {"name": "router-gateway", "namespace": OTHER}})

    def create(text: str) -> None:
        installed.kubectl.run("create", "--dry-run=server", f"--as={OPERATOR}", "-f", "-", text=text)

    create(role("get", "list", "watch"))
    for text in (role("update"), role("get", resource="secrets")):
        with pytest.raises(KubectlError, match="attempting to grant RBAC permissions not currently held"):
            create(text)


@pytest.mark.parametrize(
    ("role", "verb", "resource", "allowed"),
    [
        ("view", "list", "finetunejobs.finetune.dev", True),
        ("view", "create", "finetunejobs.finetune.dev", False),
        ("edit", "create", "finetunejobs.finetune.dev", True),
        ("edit", "update", "finetunejobs.finetune.dev/status", False),
        ("edit", "delete", "modelversions.finetune.dev", True),
        ("edit", "create", "modelversions.finetune.dev", False),
        ("view", "list", "modelendpoints.finetune.dev", True),
        ("edit", "patch", "modelendpoints.finetune.dev", True),
        ("edit", "update", "modelendpoints.finetune.dev/status", False),
        ("edit", "patch", "modelendpoints.finetune.dev/scale", True),
        ("view", "get", "modelendpoints.finetune.dev/scale", True),
        ("view", "patch", "modelendpoints.finetune.dev/scale", False),
        ("edit", "approve", "modelendpoints.finetune.dev", False),
        ("admin", "delete", "finetunejobs.finetune.dev", True),
        ("admin", "approve", "modelendpoints.finetune.dev", True),
        ("admin", "restore", "modelendpoints.finetune.dev", False),
    ],
)
def test_built_in_roles_include_ours(installed: ApiServer, role: str, verb: str, resource: str, allowed: bool) -> None:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"user-{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"user-{role}"}],
    }
    installed.kubectl.apply(binding, namespace=OTHER)
    wait_until(
        lambda: can(installed, "list", "finetunejobs.finetune.dev", namespace=OTHER, user=f"user-{role}"),
        what="the aggregation of the role",
    )
    assert can(installed, verb, resource, namespace=OTHER, user=f"user-{role}") is allowed


def test_what_may_be_changed_may_be_deleted() -> None:
    """OwnerReferencesPermissionEnforcement lets nobody else change an owner: that of a restored endpoint is another."""
    documents = yaml.safe_load_all(Path("manifests/rbac/operator.yaml").read_text())
    rules = [rule for document in documents for rule in document.get("rules", ())]
    changed = [rule for rule in rules if "patch" in rule["verbs"]]
    assert changed
    assert not [rule["resources"] for rule in changed if "delete" not in rule["verbs"]]
