"""Faults on real nodes: each ends in a clear condition or recovers, and nothing that was trained is lost."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.cluster.jobs import (
    LONG,
    Workspace,
    checkpoint,
    classifier,
    condition,
    dumped,
    phase,
    resumed,
    running_training,
    steps_in_checkpoint,
)
from tests.cluster.operator_install import SYSTEM, InstalledOperator
from tests.harness import Object, wait_until
from tests.patience import HANGS_S

pytestmark = pytest.mark.timeout(1700)
OUTAGE_S = 30
"""Twice as long as the leader's Lease."""
KILL_ALL = """
import os, signal
for entry in os.listdir("/proc"):
    if entry.isdigit() and int(entry) not in (1, os.getpid()):
        os.kill(int(entry), signal.SIGKILL)
"""


def test_one_run_through_all_that_interrupts_it(workspace: Workspace, operator: InstalledOperator) -> None:
    """An evicted pod, a killed trainer, a suspension, an apiserver that is away, a leader killed in each phase; each
    where a newer checkpoint is recorded than before the last."""
    name = "disturbed"
    workspace.apply(classifier(name, training={"epochs": None, "maxSteps": 140}))
    workspace.wait(name, lambda job: phase(job) == "Preparing", what="Preparing")
    leader_killed(operator)
    running_training(workspace, name)
    leader_killed(operator)

    (pod,) = workspace.children("pods", name, stage="Train")
    workspace.kubectl.delete("pod", pod["metadata"]["name"], namespace=workspace.namespace, wait=False)
    evicted = workspace.wait(name, lambda job: restarts(job).get("preemptions"), what="a preemption")
    assert restarts(evicted) | {"preemptions": 1, "failures": 0, "stepsLost": 0} == restarts(evicted), dumped(evicted)

    running_training(workspace, name, after=checkpoint(evicted))
    workspace.kubectl.execute(running_pod(workspace, name), "python", "-c", KILL_ALL, namespace=workspace.namespace)
    killed = workspace.wait(name, lambda job: restarts(job).get("failures"), what="a failure")
    assert restarts(killed) | {"preemptions": 1, "failures": 1} == restarts(killed), dumped(killed)
    assert restarts(killed)["stepsLost"] <= 20, "at most checkpoint.everySteps"

    running_training(workspace, name, after=checkpoint(killed))
    suspend(workspace, name, wanted=True)
    workspace.wait(name, lambda job: phase(job) == "Suspended", what="Suspended")
    wait_until(lambda: not workspace.children("pods", name, stage="Train"), what="no training pods")
    suspended = max(steps_in_checkpoint(workspace.folder))
    suspend(workspace, name, wanted=False)

    running_training(workspace, name, after=suspended)
    starts = {pod["metadata"]["name"]: _restarts(pod) for pod in operator.pods()}
    saved = max(steps_in_checkpoint(workspace.folder))
    workspace.cluster.stop_apiserver()
    stopped = time.monotonic()
    wait_until(
        lambda: time.monotonic() - stopped > OUTAGE_S and max(steps_in_checkpoint(workspace.folder)) > saved,
        what=f"a checkpoint after step {saved} while the apiserver is away",
    )
    workspace.cluster.start_apiserver()
    workspace.wait(name, lambda job: phase(job) == "Evaluating", what="Evaluating")
    assert {pod["metadata"]["name"]: _restarts(pod) for pod in operator.pods()} == starts, "no crash loop"
    leader_killed(operator)

    job = workspace.finished(name)
    assert resumed(job) >= suspended, dumped(job)
    assert restarts(job) | {"preemptions": 1, "failures": 1} == restarts(job), "training ran on through the outage"
    assert [stage["attempt"] for stage in job["status"]["stages"]] == [1, 4, 1], f"nothing ran twice: {dumped(job)}"


def leader_killed(operator: InstalledOperator) -> None:
    """The pod that leads is gone without a word; another one leads."""
    leader = operator.wait_for_leader()
    pod = leader.split("_")[0]
    operator.kubectl.run("delete", "pod", pod, "-n", SYSTEM, "--grace-period=0", "--force", timeout_s=HANGS_S)
    operator.wait_for_leader(other_than=leader)


def running_pod(workspace: Workspace, name: str) -> str:
    """The pod that trains now."""
    pods = workspace.children("pods", name, stage="Train")
    (running,) = [
        pod for pod in pods if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]
    return str(running["metadata"]["name"])


def suspend(workspace: Workspace, name: str, *, wanted: bool) -> None:
    workspace.kubectl.patch("finetunejob", name, {"spec": {"suspend": wanted}}, namespace=workspace.namespace)


def restarts(job: Object) -> dict[str, Any]:
    return dict(job["status"].get("restarts") or {})


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
    """A strategy that is named is tried where the arithmetic says that it does not fit; Auto refuses (test_memory)."""
    workspace.apply(
        classifier(
            "oom",
            compute={"strategy": "DDP", "resources": {"limits": {"memory": "256Mi"}}},
            failurePolicy={"maxFailures": 1},
        )
    )
    job = workspace.finished("oom")
    assert phase(job) == "Failed", dumped(job)
    assert condition(job, "Stalled")["reason"] == "OutOfMemory"
    assert "memory" in condition(job, "Stalled")["message"]
    assert job["status"]["restarts"]["failures"] == 1


def test_bad_input_fails_at_once_with_its_name(workspace: Workspace) -> None:
    """By its termination message, which kubelet hands on. Which inputs are bad: tests/trainer, tests/local."""
    sources = [{"name": "a", "uri": "pvc://models/data/gone.jsonl"}]
    workspace.apply(classifier("no-file", data={"sources": sources}))
    job = workspace.finished("no-file")
    assert phase(job) == "Failed"
    stalled = condition(job, "Stalled")
    assert (stalled["reason"], "gone.jsonl" in stalled["message"]) == ("InputNotFound", True), dumped(job)
    assert restarts(job).get("failures", 0) == 0, "bad input is not tried again"


def test_a_claim_for_one_node_is_refused_for_two_pods(workspace: Workspace) -> None:
    workspace.cluster.volume("single", namespace=workspace.namespace, access_modes=["ReadWriteOnce"])
    workspace.apply(classifier("rwo", artifacts={"uri": "pvc://single/runs"}, compute={"nodes": 2}))
    job = workspace.finished("rwo")
    assert phase(job) == "Failed"
    stalled = condition(job, "Stalled")
    assert stalled["reason"] == "ClaimNotShared"
    assert "single" in stalled["message"]
    assert "ReadWriteMany" in stalled["message"]


def _restarts(pod: Object) -> int:
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))
