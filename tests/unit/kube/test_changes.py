"""Which events are news, and which are echoes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from finetune_operator.core.ports import Key
from finetune_operator.kinds import concerned
from finetune_operator.kube.watch import Changes

JOB = {
    "kind": "FineTuneJob",
    "metadata": {"uid": "j", "name": "router", "namespace": "ml", "generation": 1, "resourceVersion": "1"},
    "spec": {},
    "status": {"phase": "Pending"},
}
LABELS = {"finetune.dev/job": "router", "finetune.dev/owned-by": "FineTuneJob"}
OF = "finetune.dev/endpoint"
BATCH_JOB = {
    "kind": "Job",
    "metadata": {"uid": "b", "name": "router-train-1", "namespace": "ml", "labels": LABELS},
    "spec": {"suspend": False},
    "status": {"active": 1},
}
DEPLOYMENT = {
    "kind": "Deployment",
    "metadata": {"uid": "d", "name": "router-v-1", "namespace": "ml", "generation": 1},
    "spec": {"replicas": 2},
    "status": {"replicas": 2, "readyReplicas": 2},
}
POD = {
    "kind": "Pod",
    "metadata": {"uid": "p", "name": "x", "namespace": "ml", "finalizers": ["batch.kubernetes.io/job-tracking"]},
    "spec": {},
    "status": {"phase": "Pending"},
}


def changed(manifest: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    result = copy.deepcopy(manifest)
    *steps, last = path.split(".")
    node = result
    for step in steps:
        node = node[step]
    node[last] = value
    return result


@pytest.mark.parametrize(
    ("manifest", "path", "value", "news"),
    [
        (JOB, "metadata.generation", 2, True),
        (JOB, "metadata.deletionTimestamp", "2026-11-21T00:00:00Z", True),
        (JOB, "metadata.labels", {"a": "b"}, True),
        (JOB, "metadata.annotations", {"a": "b"}, True),
        (JOB, "status.phase", "Preparing", False),
        (JOB, "status.instance", "blue", False),
        (JOB, "status.instance", "green", True),
        (JOB, "metadata.resourceVersion", "2", False),
        (BATCH_JOB, "status.conditions", [{"type": "Complete", "status": "True"}], True),
        (BATCH_JOB, "spec.suspend", True, True),
        (BATCH_JOB, "status.active", 0, False),
        (BATCH_JOB, "status.uncountedTerminatedPods", {"succeeded": ["p"]}, False),
        (DEPLOYMENT, "status.replicas", 3, True),
        (DEPLOYMENT, "status.unavailableReplicas", 1, False),
        (POD, "status.phase", "Running", True),
        (POD, "status.containerStatuses", [{"state": {"running": {}}}], True),
        (POD, "spec.nodeName", "node1", True),
        (POD, "metadata.deletionTimestamp", "2026-11-21T00:00:00Z", True),
        (POD, "metadata.finalizers", [], False),
    ],
)
def test_modifications(manifest: dict[str, Any], path: str, value: object, news: bool) -> None:
    changes = Changes(instance="blue")
    assert changes.is_news(manifest=manifest, type="ADDED")
    assert not changes.is_news(manifest=manifest, type="MODIFIED")
    assert changes.is_news(manifest=changed(manifest, path, value), type="MODIFIED") is news


def test_lists_and_deletions_are_always_news() -> None:
    changes = Changes(instance="blue")
    assert changes.is_news(manifest=JOB, type=None)
    assert changes.is_news(manifest=JOB, type=None)
    assert changes.is_news(manifest=JOB, type="DELETED")
    assert changes.is_news(manifest=JOB, type="ADDED")
    assert not changes._seen.keys() - {"j"}


def test_a_namesake_is_news() -> None:
    changes = Changes(instance="blue")
    assert changes.is_news(manifest=JOB, type="ADDED")
    assert changes.is_news(manifest=changed(JOB, "metadata.uid", "other"), type="ADDED")


def test_whose_object_it_is() -> None:
    assert concerned(JOB) == Key(kind="FineTuneJob", namespace="ml", name="router")
    assert concerned(BATCH_JOB) == Key(kind="FineTuneJob", namespace="ml", name="router")
    assert concerned(POD) is None
    version = changed({**BATCH_JOB, "kind": "ModelVersion"}, "metadata.labels", {**LABELS, OF: "support"})
    assert concerned(version) == Key(kind="ModelEndpoint", namespace="ml", name="support")
    assert concerned({**BATCH_JOB, "kind": "ModelVersion"}) is None
