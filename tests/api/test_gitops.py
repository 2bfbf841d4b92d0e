"""What is in Git and what people ask for in the cluster do not get into each other's way: on a real apiserver, with the
policies in force, by server-side apply as Argo CD and Flux do it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.api.test_gitops_judgement import ARGO_CD, asked, judge, recordings
from tests.harness import ApiServer, Kubectl, KubectlError, Object, wait_until

__all__ = ["judge"]
TOOL = "argocd-controller"
"""Argo CD's field manager; Flux has another one, and does the same."""
JOB = Path("manifests/samples/topic_classifier.yaml")
ENDPOINT = Path("manifests/samples/modelendpoint-classifier.yaml")
PAGE = Path("docs/gitops.md")


@pytest.fixture(scope="module")
def ml(policed: ApiServer) -> Iterator[str]:
    """A namespace in which Argo CD has the rights that docs/gitops.md gives it, beside those it has."""
    policed.kubectl.run("create", "clusterrole", "argocd-server", "--verb=get,patch,delete", "--resource=*.*")
    subject = ARGO_CD.removeprefix("system:serviceaccount:")
    policed.kubectl.run(
        "create", "clusterrolebinding", "argocd-server", "--clusterrole=argocd-server", f"--serviceaccount={subject}"
    )
    with policed.namespace_named("ml") as namespace:
        bindings = [each for each in documents(PAGE) if each["kind"] == "RoleBinding"]
        assert len(bindings) == 2
        for each in bindings:
            policed.kubectl.create({**each, "metadata": {**each["metadata"], "namespace": namespace}})
        for verb in ("approve", "create"):
            wait_until(lambda verb=verb: may(policed.kubectl, verb, namespace), what=f"the right to {verb}")  # type: ignore[misc] # a default
        yield namespace


def documents(page: Path) -> list[Any]:
    """What a page shows as YAML."""
    blocks = page.read_text().split("```yaml\n")[1:]
    return [each for block in blocks for each in yaml.safe_load_all(block.partition("```")[0])]


def may(kubectl: Kubectl, verb: str, namespace: str) -> bool:
    resource = "finetunejobs" if verb == "create" else "modelendpoints"
    question = ("auth", "can-i", verb, f"{resource}.finetune.dev", f"--namespace={namespace}", f"--as={ARGO_CD}")
    try:
        return kubectl.run(*question).strip() == "yes"
    except KubectlError:
        return False


def applied(kubectl: Kubectl, manifest: Object, *, namespace: str, dry: bool = False) -> Object:
    """As the tool applies it; what is then there, or would be."""
    options = ["--server-side", "--force-conflicts", f"--field-manager={TOOL}", *(["--dry-run=server"] if dry else [])]
    text = kubectl.run(
        "apply", f"--namespace={namespace}", *options, "-o", "json", "-f", "-", text=json.dumps(manifest)
    )
    found: Object = json.loads(text)
    return found


def as_seen(stored: Object) -> Object:
    """Without who set what, and when."""
    metadata = {key: value for key, value in stored["metadata"].items() if key != "managedFields"}
    return {**stored, "metadata": metadata}


def within(wanted: Any, stored: Any) -> bool:
    """Whether all that a manifest says is so, word for word."""
    if isinstance(wanted, dict):
        return all(key in stored and within(value, stored[key]) for key, value in wanted.items())
    return bool(wanted == stored)


def acted(kubectl: Kubectl, judge: Path, name: str, *, kind: str, action: str, namespace: str) -> None:
    """Argo CD runs an action, with its own account."""
    (answer,) = asked(judge, [kubectl.get(kind, name, namespace=namespace)])
    assert action in answer["offered"]
    patch = json.dumps(answer["patches"][action])
    kubectl.run("patch", kind, name, f"--namespace={namespace}", f"--as={ARGO_CD}", "--type=merge", "-p", patch)


@pytest.mark.parametrize(
    ("sample", "recording", "actions"),
    [
        (JOB, "Training", ["pause", "resume"]),
        (JOB, "Failed", ["retry"]),
        (ENDPOINT, "Canary", ["approve", "pause", "resume", "reject", "rollback"]),
        (ENDPOINT, "Idle", []),
    ],
    ids=["job", "job that failed", "endpoint that tries a version", "endpoint at rest"],
)
def test_nothing_differs_from_git_whatever_happens(
    policed: ApiServer, ml: str, judge: Path, sample: Path, recording: str, actions: list[str]
) -> None:
    """No ignoreDifferences: not when the operator has written, and not when people have acted."""
    kubectl, (manifest,) = policed.kubectl, list(yaml.safe_load_all(sample.read_text()))
    kind, name = manifest["kind"], f"{manifest['metadata']['name']}-{recording.lower()}"
    manifest["metadata"]["name"] = name
    created = applied(kubectl, manifest, namespace=ml)
    assert within(manifest, created)
    status = {**recordings()[kind, recording]["status"], "observedGeneration": created["metadata"]["generation"]}
    kubectl.patch(kind, name, {"status": status}, namespace=ml, subresource="status")
    for action in ["", *actions]:
        if action:
            acted(kubectl, judge, name, kind=kind, action=action, namespace=ml)
        live = kubectl.get(kind, name, namespace=ml)
        assert within(manifest, live), action
        assert as_seen(applied(kubectl, manifest, namespace=ml, dry=True)) == as_seen(live), action
        applied(kubectl, manifest, namespace=ml)
        again = kubectl.get(kind, name, namespace=ml)
        assert as_seen(again) == as_seen(live), f"{action}: not even written"


def test_what_a_job_says_of_suspension_in_git_is_what_counts(policed: ApiServer, ml: str, judge: Path) -> None:
    manifest = yaml.safe_load(JOB.read_text())
    manifest["metadata"]["name"] = "says-so"
    manifest["spec"]["suspend"] = False
    applied(policed.kubectl, manifest, namespace=ml)
    acted(policed.kubectl, judge, "says-so", kind="FineTuneJob", action="pause", namespace=ml)
    assert policed.kubectl.get("finetunejob", "says-so", namespace=ml)["spec"]["suspend"] is True
    applied(policed.kubectl, manifest, namespace=ml)
    assert policed.kubectl.get("finetunejob", "says-so", namespace=ml)["spec"]["suspend"] is False


def test_health_and_actions_are_added_to_the_settings_that_are_there(apiserver: ApiServer) -> None:
    """Also those of somebody's own kustomization."""
    kubectl = apiserver.kubectl
    kubectl.run("create", "namespace", "argocd")
    own = {"data": {"url": "https://argocd.example.com"}, "metadata": {"name": "argocd-cm", "namespace": "argocd"}}
    kubectl.create({"apiVersion": "v1", "kind": "ConfigMap", **own})
    kubectl.run("apply", "--server-side", "-k", "manifests/argocd")
    found = kubectl.get("configmap", "argocd-cm", namespace="argocd")["data"]
    assert found["url"] == "https://argocd.example.com"
    assert {key.rpartition(".finetune.dev_")[0] for key in found} == {
        "",
        "resource.customizations.health",
        "resource.customizations.actions",
    }
    (actions,) = [text for key, text in found.items() if key.endswith("actions.finetune.dev_FineTuneJob")]
    assert [each["name"] for each in yaml.safe_load(actions)["definitions"]] == ["pause", "resume", "retry"]
