"""The CustomResourceDefinitions on a real apiserver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.harness import ApiServer, KubectlError
from tests.wrong_manifests import valid

from finetune_api.crd import RESOURCES

SAMPLES = sorted(
    path for path in Path("manifests/samples").rglob("*.yaml") if path.parent.name not in ("argocd", "flux")
)
"""Those that an apiserver knows without anybody else's types."""
NAMES = [f"{resource.plural}.finetune.dev" for resource in RESOURCES]


@pytest.mark.parametrize("name", NAMES)
def test_is_accepted_and_structural(crds: ApiServer, name: str) -> None:
    definition = crds.kubectl.get("customresourcedefinition", name)
    conditions = {condition["type"]: condition["status"] for condition in definition["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions


@pytest.mark.parametrize("kind", ["job", "version", "endpoint"])
def test_a_right_manifest_is_taken_unchanged(crds: ApiServer, namespace: str, kind: str) -> None:
    manifest = valid(kind) | {"metadata": {"name": "router", "namespace": namespace}}
    crds.kubectl.create(manifest)
    stored = crds.kubectl.get(manifest["kind"].lower(), "router", namespace=namespace)
    assert stored["spec"] == manifest["spec"]
    assert stored.get("status") == (None if kind == "version" else {"observedGeneration": -1}), (
        "not seen yet, to kstatus"
    )


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_right(crds: ApiServer, namespace: str, sample: Path) -> None:
    crds.kubectl.run("create", f"--namespace={namespace}", "--dry-run=server", "--validate=strict", "-f", str(sample))


def test_the_fields_that_may_change_do(crds: ApiServer, namespace: str) -> None:
    crds.kubectl.create(valid("job") | {"metadata": {"name": "router", "namespace": namespace}})
    change = {"suspend": True, "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 10}
    crds.kubectl.patch("finetunejob", "router", {"spec": change}, namespace=namespace)
    stored = crds.kubectl.get("finetunejob", "router", namespace=namespace)
    assert {key: stored["spec"][key] for key in change} == change


def test_short_names_columns_and_categories(crds: ApiServer, namespace: str) -> None:
    crds.kubectl.create(valid("job") | {"metadata": {"name": "router", "namespace": namespace}})
    crds.kubectl.create(valid("version") | {"metadata": {"name": "router-1", "namespace": namespace}})
    status = {
        "phase": "Training",
        "trainerStatus": {"progressPercentage": 35, "metrics": [{"name": "loss", "value": "1.83"}]},
    }
    crds.kubectl.patch("finetunejob", "router", {"status": status}, namespace=namespace, subresource="status")
    jobs = crds.kubectl.run("get", "ftj", "-n", namespace, "-o", "wide").splitlines()
    assert jobs[0].split() == [
        "NAME",
        "PHASE",
        "PROGRESS",
        "VERSION",
        "ENDPOINT",
        "STEP",
        "LOSS",
        "ETA",
        "MESSAGE",
        "WAITS-FOR",
        "AGE",
    ]
    assert jobs[1].split()[:4] == ["router", "Training", "35", "1.83"]
    versions = crds.kubectl.run("get", "mv", "-n", namespace).splitlines()
    assert versions[0].split() == ["NAME", "ENDPOINT", "VERDICT", "METHOD", "METRIC", "CANDIDATE", "BASELINE", "AGE"]
    assert versions[1].split()[:6] == ["router-1", "Pass", "LoRA", "exact_match", "0.8", "0"]
    both = crds.kubectl.run("get", "finetune", "-n", namespace, "-o", "name").split()
    assert both == ["finetunejob.finetune.dev/router", "modelversion.finetune.dev/router-1"]


def test_columns_of_endpoints(crds: ApiServer, namespace: str) -> None:
    crds.kubectl.create(valid("endpoint") | {"metadata": {"name": "router", "namespace": namespace}})
    served = {"digest": f"sha256:{'a' * 64}", "revision": "router-1"}
    step = {"stage": "Canary", "index": 1, "name": "five", "startTime": "2026-01-01T00:00:00Z", "percent": 5}
    status = {
        "phase": "Canary",
        "message": "five percent of users see the candidate",
        "stable": {"name": "router-6", "uid": "6", **served},
        "candidate": {"name": "router-7", "uid": "7", **served},
        "step": {**step, "samples": 212, "needed": 300},
    }
    crds.kubectl.patch("modelendpoint", "router", {"status": status}, namespace=namespace, subresource="status")
    header, row = crds.kubectl.run("get", "mep", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "PHASE", "STABLE", "CANDIDATE", "WEIGHT", "SAMPLES", "AGE"]
    assert row.split()[:6] == ["router", "Canary", "router-6", "router-7", "5", "212"]
    wide = crds.kubectl.run("get", "mep", "-n", namespace, "-o", "wide")
    assert "five percent of users see the candidate" in wide


def test_endpoints_have_a_scale(crds: ApiServer, namespace: str) -> None:
    manifest = valid("endpoint") | {"metadata": {"name": "router", "namespace": namespace}}
    del manifest["spec"]["serving"]["replicas"]
    crds.kubectl.create(manifest)
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/modelendpoints/router/scale"
    before = json.loads(crds.kubectl.run("get", "--raw", path))
    assert (before["spec"], before["status"]) == ({"replicas": 1}, {"replicas": 0})
    crds.kubectl.run("scale", "--replicas=3", "mep/router", "-n", namespace)
    assert crds.kubectl.get("modelendpoint", "router", namespace=namespace)["spec"]["serving"]["replicas"] == 3
    status = {"replicas": 2, "selector": "finetune.dev/endpoint=router,finetune.dev/version-uid=6"}
    crds.kubectl.patch("modelendpoint", "router", {"status": status}, namespace=namespace, subresource="status")
    after = json.loads(crds.kubectl.run("get", "--raw", path))
    assert (after["spec"], after["status"]) == ({"replicas": 3}, status)
    with pytest.raises(KubectlError, match=r"spec\.serving\.replicas.*greater than or equal to 1"):
        crds.kubectl.run("scale", "--replicas=0", "mep/router", "-n", namespace)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("ftj.spec.training.learningRate", "Default 2e-4 for LoRA"),
        ("ftj.spec.method.lora.rank", "Size of the update"),
        ("ftj.spec.failurePolicy.hangSeconds", "counts as hung"),
        ("mv.spec.artifact.digest", "sha256"),
        ("mep.spec.version", "Empty: the newest proven one"),
        ("mep.spec.rollout", "Default: an hour, without holdback"),
        ("mep.spec.rollout.steps.percent", "sticky by user"),
        ("mep.spec.gateway.apiKeysSecretRef", "accepted as bearer tokens"),
    ],
)
def test_kubectl_explains(crds: ApiServer, path: str, words: str) -> None:
    assert words in " ".join(crds.kubectl.run("explain", path).split())
