"""A cluster of a test's own: what a chart installs belongs to the whole of it, and types go slowly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import yaml
from tests.chart.helm import RELEASE, Helm
from tests.harness import ApiServer, Kubectl, Object, wait_until
from tests.harness.store import ROOT
from tests.wrong_manifests import valid

JOB = ROOT / "manifests" / "samples" / "topic_classifier.yaml"
ENDPOINT = "router"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
_OURS = ("finetunejobs", "modelendpoints")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """An API server, Helm for it, and two namespaces: for a release, and for users."""

    helm: Helm
    kubectl: Kubectl
    system: str
    team: str

    @classmethod
    @contextmanager
    def running(cls, *, helm: Helm) -> Iterator[Cluster]:
        """A fresh one."""
        with (
            ApiServer.running() as apiserver,
            apiserver.namespace_named("tuner", labels=RESTRICTED) as system,
            apiserver.namespace_named("team") as team,
        ):
            yield cls(helm=helm.on(apiserver.kubeconfig), kubectl=apiserver.kubectl, system=system, team=team)

    def deployment(self, *, namespace: str) -> Object:
        """The operator's."""
        return self.kubectl.get("deployment", RELEASE, namespace=namespace)

    def users_work(self) -> dict[str, str]:
        """Kind to UID of the users' job and endpoint."""
        found = {kind: self.kubectl.list(kind, namespace=self.team) for kind in _OURS}
        return {kind: item["metadata"]["uid"] for kind, items in found.items() for item in items}

    def make_users_work(self) -> dict[str, str]:
        """Make a job and an endpoint, as soon as the types are there."""
        for kind in _OURS:
            wait_for_type(self.kubectl, f"{kind}.finetune.dev")
        self.kubectl.create(yaml.safe_load(JOB.read_text()), namespace=self.team)
        self.kubectl.create(valid("endpoint") | {"metadata": {"name": ENDPOINT}}, namespace=self.team)
        made = self.users_work()
        assert set(made) == set(_OURS)
        return made

    def may_list_jobs(self, account: str, *, namespace: str) -> bool:
        """Whether an account, as `namespace:name`, may list the jobs of a namespace."""
        attributes = {"verb": "list", "group": "finetune.dev", "resource": "finetunejobs", "namespace": namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": f"system:serviceaccount:{account}", "resourceAttributes": attributes},
        }
        allowed = self.kubectl.run("create", "-f", "-", "--output=jsonpath={.status.allowed}", text=json.dumps(review))
        return allowed == "true"


def wait_for_type(kubectl: Kubectl, name: str) -> None:
    """Wait until the apiserver takes objects of a CustomResourceDefinition."""

    def established(definition: Object) -> bool:
        conditions = definition.get("status", {}).get("conditions") or []
        return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)

    kubectl.wait_for("customresourcedefinition", name, established, what="Established")
    kind, _, group = name.partition(".")
    wait_until(
        lambda: kind in kubectl.run("api-resources", f"--api-group={group}", "--cached=false"),
        what=f"{name} among the types served",
    )
