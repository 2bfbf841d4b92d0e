"""Faults on real nodes: each ends in a clear condition or recovers, and nothing that was trained is lost."""

from __future__ import annotations

import time

import pytest
from tests.cluster.jobs import LONG, Workspace, classifier, condition, dumped, phase, resumed, running_training
from tests.cluster.operator_install import SYSTEM, InstalledOperator, install
from tests.harness import Object

pytestmark = pytest.mark.timeout(1200)
KILL_ALL = """
import os, signal
for entry in os.listdir("/proc"):
    if entry.isdigit() and int(entry) not in (1, os.getpid()):
        os.kill(int(entry), signal.SIGKILL)
"""


def test_a_deleted_pod_is_a_preemption_that_loses_no_step(workspace: Workspace) -> None:
    workspace.apply(classifier("evicted", training=LONG))
    before = running_training(workspace, "evicted")
    (pod,) = workspace.children("pods", "evicted", stage="Train")
    workspace.kubectl.delete("pod", pod["metadata"]["name"], namespace=workspace.namespace, wait=False)
    job = workspace.finished("evicted")
    assert resumed(job) >= before["status"]["checkpoint"]["step"]
    assert job["status"]["restarts"]["preemptions"] == 1
    assert job["status"]["restarts"]["failures"] == 0
    assert job["status"]["restarts"]["stepsLost"] == 0


def test_kill_9_of_the_trainer_resumes_from_the_checkpoint(workspace: Workspace) -> None:
    workspace.apply(classifier("killed", training=LONG))
    before = running_training(workspace, "killed")
    (pod,) = workspace.children("pods", "killed", stage="Train")
    workspace.kubectl.execute(pod["metadata"]["name"], "python", "-c", KILL_ALL, namespace=workspace.namespace)
    job = workspace.finished("killed")
    assert resumed(job) >= before["status"]["checkpoint"]["step"]
    assert job["status"]["restarts"]["failures"] == 1
    assert job["status"]["restarts"]["stepsLost"] <= 20, "at most checkpoint.everySteps"


def test_a_lost_node_moves_the_run(workspace: Workspace) -> None:
    pinned = {"nodeSelector": {"kubernetes.io/hostname": "node2"}}
    workspace.apply(classifier("node-lost", training=LONG, compute={"podTemplate": {"spec": pinned}}))
    before = running_training(workspace, "node-lost")
    workspace.cluster.stop_node("node2")
    try:
        lost = workspace.wait(
            "node-lost", lambda job: (job["status"].get("restarts") or {}).get("preemptions"), what="a preemption"
        )
        assert lost["status"]["restarts"]["last"]["reason"] in ("NodeLost", "Preempted"), dumped(lost)
    finally:
        workspace.cluster.start_node("node2")
        workspace.cluster.wait_ready("node2")
    job = workspace.finished("node-lost")
    assert resumed(job) >= before["status"]["checkpoint"]["step"]


def test_out_of_memory_is_named_and_bounded(workspace: Workspace) -> None:
    workspace.apply(
        classifier(
            "oom",
            compute={"resources": {"limits": {"memory": "256Mi"}}},
            failurePolicy={"maxFailures": 1},
        )
    )
    job = workspace.finished("oom")
    assert phase(job) == "Failed", dumped(job)
    assert condition(job, "Stalled")["reason"] == "OutOfMemory"
    assert "memory" in condition(job, "Stalled")["message"]
    assert job["status"]["restarts"]["failures"] == 1


def test_an_image_that_cannot_be_pulled_is_named(workspace: Workspace, operator: InstalledOperator) -> None:
    cluster = operator.cluster
    install(cluster=cluster, trainer_image="localhost/no-such-image:1")
    try:
        workspace.apply(classifier("no-image"))
        job = workspace.wait(
            "no-image",
            lambda job: "no-such-image" in (job.get("status", {}).get("message") or ""),
            what="the image's name",
        )
        assert phase(job) in ("Preparing", "Failed"), dumped(job)
        workspace.kubectl.delete("finetunejob", "no-image", namespace=workspace.namespace)
    finally:
        install(cluster=cluster)


@pytest.mark.parametrize(
    ("name", "changes", "reason", "words"),
    [
        (
            "no-file",
            {"data": {"sources": [{"name": "a", "uri": "pvc://models/data/gone.jsonl"}]}},
            "InputNotFound",
            "gone.jsonl",
        ),
        ("no-base", {"model": {"uri": "pvc://models/no-such-model"}}, "InputNotFound", "no-such-model"),
        (
            "outside",
            {"data": {"sources": [{"name": "a", "uri": "file:///etc/passwd"}]}},
            "UriNotAllowed",
            "/etc/passwd",
        ),
    ],
)
def test_bad_input_fails_at_once_with_its_name(
    workspace: Workspace, name: str, changes: dict[str, object], reason: str, words: str
) -> None:
    workspace.apply(classifier(name, **changes))
    job = workspace.finished(name, timeout_s=120)
    assert phase(job) == "Failed"
    stalled = condition(job, "Stalled")
    assert (stalled["reason"], words in stalled["message"]) == (reason, True), dumped(job)
    assert (job["status"].get("restarts") or {}).get("failures", 0) == 0, "bad input is not tried again"


def test_a_claim_for_one_node_is_refused_for_two_pods(workspace: Workspace) -> None:
    workspace.cluster.volume("single", namespace=workspace.namespace, access_modes=["ReadWriteOnce"])
    workspace.apply(classifier("rwo", artifacts={"uri": "pvc://single/runs"}, compute={"nodes": 2}))
    job = workspace.finished("rwo", timeout_s=60)
    assert phase(job) == "Failed"
    stalled = condition(job, "Stalled")
    assert stalled["reason"] == "ClaimNotShared"
    assert "single" in stalled["message"]
    assert "ReadWriteMany" in stalled["message"]


def test_the_leader_killed_in_each_phase(workspace: Workspace, operator: InstalledOperator) -> None:
    workspace.apply(classifier("orphaned"))
    for in_phase in ("Preparing", "Training", "Evaluating"):
        workspace.wait("orphaned", lambda job, wanted=in_phase: phase(job) == wanted, what=in_phase)
        leader = operator.wait_for_leader()
        pod = leader.split("_")[0]
        operator.kubectl.run("delete", "pod", pod, "-n", SYSTEM, "--grace-period=0", "--force", timeout_s=60)
        operator.wait_for_leader(other_than=leader)
    job = workspace.finished("orphaned")
    assert phase(job) == "Succeeded", dumped(job)
    assert len(workspace.children("jobs", "orphaned")) == 3, "one Job a stage: nothing ran twice"
    assert (job["status"].get("restarts") or {}).get("failures", 0) == 0


def test_an_apiserver_away_for_a_minute(workspace: Workspace, operator: InstalledOperator) -> None:
    restarts = {pod["metadata"]["name"]: _restarts(pod) for pod in operator.pods()}
    workspace.apply(classifier("outage", training=LONG))
    running_training(workspace, "outage")
    workspace.cluster.stop_apiserver()
    time.sleep(60)
    workspace.cluster.start_apiserver()
    job = workspace.finished("outage")
    assert phase(job) == "Succeeded", dumped(job)
    assert (job["status"].get("restarts") or {}).get("failures", 0) == 0, "training ran on through the outage"
    assert {p["metadata"]["name"]: _restarts(p) for p in operator.pods()} == restarts, "no crash loop"


def _restarts(pod: Object) -> int:
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))
