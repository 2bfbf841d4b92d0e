"""People of a namespace and their rights, with the shipped policies in force on a real apiserver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.harness import ApiServer, Kubectl, KubectlError, wait_until
from tests.wrong_manifests import Manifest, valid

from finetune_api.modelendpoint import ALLOW_DELETE, APPROVE

POLICIES = Path("manifests/policy")
Annotations = Mapping[str, str | None]


@pytest.fixture(scope="module")
def policed(crds: ApiServer) -> Iterator[ApiServer]:
    """With rights and policies in force; the other modules work without the policies."""
    crds.kubectl.apply(Path("manifests/rbac"))
    crds.kubectl.apply(POLICIES)
    with crds.namespace_named("trial") as namespace:
        crds.kubectl.create(endpoint(namespace=namespace))
        wait_until(lambda: not _deletable(crds, namespace), what="the policies to come into force")
        yield crds
        crds.kubectl.run("delete", "-k", str(POLICIES))
        wait_until(lambda: _deletable(crds, namespace), what="the policies to go")


def _deletable(apiserver: ApiServer, namespace: str) -> bool:
    try:
        apiserver.kubectl.run("delete", "mep", "router", "-n", namespace, "--dry-run=server")
        # The two policies come and go one by one.
        apiserver.kubectl.run("annotate", "mep", "router", "-n", namespace, "--dry-run=server", f"{APPROVE}=x")
    except KubectlError:
        return False
    return True


def endpoint(*, namespace: str, name: str = "router", annotations: Annotations | None = None) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "annotations": dict(annotations or {})}
    return valid("endpoint") | {"metadata": metadata}


@dataclass(frozen=True, kw_only=True)
class Team:
    """Users of one namespace: `alice` may approve, `bob` and `carol` may only edit."""

    apiserver: ApiServer
    namespace: str

    def user(self, name: str) -> Kubectl:
        """kubectl with the user's own certificate."""
        return self.apiserver.user(name)

    def bind(self, *, user: str, role: str, kind: str = "ClusterRole") -> None:
        """Give a role in the namespace and wait until it holds."""
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"{user}-{role}", "namespace": self.namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }
        self.apiserver.kubectl.create(binding)

    def can(self, user: str, verb: str) -> bool:
        question = ("auth", "can-i", verb, "modelendpoints.finetune.dev", "-n", self.namespace, f"--as={user}")
        try:
            return self.apiserver.kubectl.run(*question).strip() == "yes"
        except KubectlError:
            return False

    def annotate(self, user: str, annotations: Annotations, *, name: str = "router") -> None:
        """None removes."""
        change = {"metadata": {"annotations": dict(annotations)}}
        self.user(user).patch("modelendpoint", name, change, namespace=self.namespace)

    def annotations(self) -> dict[str, str]:
        stored = self.apiserver.kubectl.get("modelendpoint", "router", namespace=self.namespace)
        found: dict[str, str] = stored["metadata"].get("annotations", {})
        return found


@pytest.fixture(scope="module")
def members(policed: ApiServer) -> Iterator[Team]:
    """The people and their rights, for the whole module."""
    with policed.namespace_named("people") as namespace:
        team = Team(apiserver=policed, namespace=namespace)
        for user in ("alice", "bob", "carol"):
            team.bind(user=user, role="finetune-view")
            team.bind(user=user, role="finetune-edit")
        team.bind(user="alice", role="finetune-approve")
        for user, verb in (("alice", "approve"), ("bob", "patch"), ("carol", "patch")):
            wait_until(lambda user=user, verb=verb: team.can(user, verb), what=f"{user}'s rights")  # type: ignore[misc]
        assert not team.can("bob", "approve")
        yield team


@pytest.fixture
def team(members: Team) -> Iterator[Team]:
    """With a fresh endpoint `router`."""
    members.apiserver.kubectl.create(endpoint(namespace=members.namespace))
    yield members
    change = {"metadata": {"annotations": {ALLOW_DELETE: "true"}}}
    members.apiserver.kubectl.patch("modelendpoint", "router", change, namespace=members.namespace)
    members.apiserver.kubectl.delete("modelendpoint", "router", namespace=members.namespace)
