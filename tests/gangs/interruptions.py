"""What interrupts a training of two pods, and what docs/restarts.md says that it comes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from tests.cluster import containers
from tests.cluster.jobs import phase
from tests.cluster.operator_install import InstalledOperator
from tests.gangs.gang import EVERY_STEPS, Gang, restarts
from tests.harness import Object, wait_until
from tests.harness.errors import HarnessError

_KILL_RANK = """
import glob, os, signal
for path in glob.glob("/proc/[0-9]*/cmdline"):
    words = open(path, "rb").read().split(b"\\0")
    if b"finetune_trainer.training.worker" in words and b"torch.distributed.run" not in words:
        os.kill(int(path.split("/")[2]), signal.SIGKILL)
"""
_TAKE_ALL_MEMORY = """
import glob
for path in glob.glob("/proc/[0-9]*/cmdline"):
    words = open(path, "rb").read().split(b"\\0")
    if b"finetune_trainer.training.worker" in words and b"torch.distributed.run" not in words:
        open(path.replace("cmdline", "oom_score_adj"), "w").write("1000")  # whom the kernel takes first
held = bytearray(2 << 30)
"""
_REPLICAS = 2
_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """One row of the table in docs/restarts.md."""

    name: str
    reasons: Set[str]
    """Of `restarts.last`: the cause, or what the container says of its own end."""
    budget: str
    most_lost: int = EVERY_STEPS
    """Steps that may be done again."""
    begin: Callable[[Gang], Callable[[], None] | None] = lambda gang: None
    """Gives what clears up once it is recorded."""

    def __str__(self) -> str:
        return self.name


def interrupt(gangs: Sequence[Gang], interruption: Interruption) -> dict[str, int]:
    """Each as soon as it has come further: the others may be slower to begin again; the steps that each lost."""
    lost = _each(gangs, lambda gang: _interrupted(gang, interruption))
    return {gang.strategy: steps for gang, steps in lost}


def _interrupted(gang: Gang, interruption: Interruption) -> int:
    job = gang.trained_further()
    clear_up = interruption.begin(gang)
    try:
        return _steps_lost(gang, job, interruption)
    finally:
        if clear_up is not None:
            clear_up()


def _each(gangs: Sequence[Gang], do: Callable[[Gang], _Found]) -> list[tuple[Gang, _Found]]:
    with ThreadPoolExecutor(len(gangs)) as pool:
        return list(zip(gangs, pool.map(do, gangs), strict=True))


def lose_node(gangs: Sequence[Gang], *, name: str) -> dict[str, int]:
    """The power of a node on which each has a pod; it comes back when they have gone on without it."""
    before = _each(gangs, Gang.trained_further)
    for gang in gangs:
        assert name in {pod["spec"]["nodeName"] for pod in gang.pods()}
    cluster = gangs[0].workspace.cluster
    cluster.stop_node(name)
    try:
        return {gang.strategy: _steps_lost(gang, job, NODE_LOST) for gang, job in before}
    finally:
        cluster.start_node(name)


def lose_results(gangs: Sequence[Gang], *, operator: InstalledOperator) -> dict[str, int]:
    """The pods that have the results are gone before the operator, which was away, has read them."""
    before = _each(gangs, Gang.trained_further)
    operator.scale(0)
    for gang in gangs:
        wait_until(lambda gang=gang: len(gang.pods(phase="Succeeded")) == 2, what=f"the end of {gang.name}")
        _delete_at_once(gang, gang.pods(phase="Succeeded")[0])
    operator.scale(_REPLICAS)
    return {gang.strategy: _steps_lost(gang, job, RESULT_LOST) for gang, job in before}


def _steps_lost(gang: Gang, before: Object, interruption: Interruption) -> int:
    found = gang.restarted(before, budget=interruption.budget)
    assert found["last"]["reason"] in interruption.reasons, (interruption.name, gang.name, found)
    lost = int(found.get("stepsLost", 0)) - int(restarts(before).get("stepsLost", 0))
    assert lost <= interruption.most_lost, (interruption.name, gang.name, found)
    return lost


def suspend(gangs: Sequence[Gang]) -> None:
    """All of them, until none has a pod; then they may go on. No budget pays."""

    def told(gang: Gang) -> Object:
        job = gang.trained_further()
        gang.suspend(wanted=True)
        return job

    for gang, job in _each(gangs, told):
        gang.workspace.wait(gang.name, lambda job: phase(job) == "Suspended", what="Suspended")
        gang.gone()
        gang.passed = gang.saved
        assert gang.job()["status"].get("restarts") == job["status"].get("restarts")
        gang.suspend(wanted=False)


def _evict(gang: Gang) -> None:
    namespace, pod = gang.workspace.namespace, gang.pods()[1]["metadata"]["name"]
    metadata = {"name": pod, "namespace": namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    gang.workspace.kubectl.run("create", "--raw", path, "-f", "-", text=json.dumps(eviction))


def _in_pod(gang: Gang, index: int, program: str) -> None:
    pod = gang.pods()[index]["metadata"]["name"]
    with suppress(HarnessError):  # the container ends, and the command with it
        gang.workspace.kubectl.execute(pod, "python", "-c", program, namespace=gang.workspace.namespace)


def _delete_job(gang: Gang) -> None:
    (job,) = gang.workspace.children("jobs", gang.name, stage="Train")
    gang.workspace.kubectl.delete("job", job["metadata"]["name"], namespace=gang.workspace.namespace, wait=False)


def _delete_at_once(gang: Gang, pod: Object) -> None:
    """Kubelet gives its containers two seconds, and its object is gone before they are."""
    where = ("-n", gang.workspace.namespace)
    gang.workspace.kubectl.run(
        "delete", "pod", pod["metadata"]["name"], *where, "--grace-period=0", "--force", "--wait=false"
    )


def _freeze(gang: Gang) -> Callable[[], None]:
    pids = gang.processes(1)
    containers.freeze(pids)
    return lambda: containers.kill(pids)  # kubelet would, 120 s later


_INTERRUPTED, _FAILED = "preemptions", "failures"
EVICTED = Interruption(name="evicted", begin=_evict, reasons={"Preempted"}, budget=_INTERRUPTED, most_lost=0)
RANK_KILLED = Interruption(
    name="rank killed",
    begin=lambda gang: _in_pod(gang, 1, _KILL_RANK),
    reasons={"ProcessKilled", "PeerLost"},
    budget=_FAILED,
)
JOB_DELETED = Interruption(
    name="Job deleted", begin=_delete_job, reasons={"JobDeleted"}, budget=_INTERRUPTED, most_lost=0
)
POD_DELETED = Interruption(
    name="pod deleted at once",
    begin=lambda gang: _delete_at_once(gang, gang.pods()[1]),
    reasons={"PodDeleted", "Preempted"},  # two seconds are enough for a checkpoint of a small model
    budget=_INTERRUPTED,
)
OUT_OF_MEMORY = Interruption(
    name="out of memory",
    begin=lambda gang: _in_pod(gang, 0, _TAKE_ALL_MEMORY),
    reasons={"OutOfMemory"},
    budget=_FAILED,
)
HUNG = Interruption(name="hung", begin=_freeze, reasons={"Hung"}, budget=_FAILED)
NODE_LOST = Interruption(name="node lost", reasons={"NodeLost"}, budget=_INTERRUPTED)
RESULT_LOST = Interruption(name="result lost", reasons={"ResultLost"}, budget=_INTERRUPTED, most_lost=0)
