"""Away from the nodes on which the last attempts ended, without losing what the user wants."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.objects import CONFIG, START, job, plan_of
from tests.unit.attempts.test_judge import failed, pod, running, said, verdict

from finetune_api.finetunejob import Restarts
from finetune_operator.attempts.manifests import avoiding
from finetune_operator.attempts.pods import PodState
from finetune_operator.attempts.restarts import delay_seconds, in_series
from finetune_operator.attempts.verdicts import Broken
from finetune_operator.job.children import children_of
from finetune_operator.job.stages import Results

REQUIRED, PREFERRED = (f"{word}DuringSchedulingIgnoredDuringExecution" for word in ("required", "preferred"))


def not_in(*nodes: str) -> list[dict[str, Any]]:
    return [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]


def test_without_nodes_nothing_is_said() -> None:
    assert avoiding(None, nodes=[]) is None
    assert avoiding({"podAffinity": {}}, nodes=[]) == {"podAffinity": {}}


def test_first_a_wish_and_then_a_must() -> None:
    found = avoiding(None, nodes=["b", "a", "b"])
    assert found is not None
    assert found["nodeAffinity"][REQUIRED] == {"nodeSelectorTerms": [{"matchFields": not_in("b")}]}
    assert found["nodeAffinity"][PREFERRED] == [{"weight": 100, "preference": {"matchFields": not_in("a")}}]


def test_a_users_affinity_stays() -> None:
    zone = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    wish = {"weight": 1, "preference": zone}
    theirs = {
        "podAntiAffinity": {"x": 1},
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [zone, zone]}, PREFERRED: [wish]},
    }
    found = avoiding(theirs, nodes=["b", "b", "c"])
    assert found is not None
    assert found["podAntiAffinity"] == {"x": 1}
    assert found["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == [{**zone, "matchFields": not_in("b")}] * 2
    assert found["nodeAffinity"][PREFERRED][0] == wish


def test_the_pods_of_an_attempt_avoid_them() -> None:
    run = job(compute={"podTemplate": {"spec": {"nodeSelector": {"gpu": "yes"}}}})
    *_, made = children_of(
        job=run, plan=plan_of(run), stage="Prepare", attempt=2, results=Results(), config=CONFIG, door=None, avoid=["b"]
    )
    spec = made["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"gpu": "yes"}
    assert spec["affinity"]["nodeAffinity"][PREFERRED][0]["preference"] == {"matchFields": not_in("b")}


@pytest.mark.parametrize(
    ("state", "node"),
    [
        (pod(phase="Failed", disruption="UnexpectedAdmissionError", node="n"), "n"),
        (pod(phase="Failed", disruption="OutOfcpu", node="n"), "n"),
        (failed(255, disruption="DeletionByPodGC", node="n"), "n"),
        (failed(128, word="StartError", node="n"), "n"),
        (failed(70, said=said("InternalError"), node="n"), "n"),
        (failed(75, said=said("StoppedAfterCheckpoint", step=1), node="n"), ""),
        (failed(137, disruption="EvictionByEvictionAPI", node="n"), ""),
        (failed(137, disruption="PreemptionByScheduler", node="n"), ""),
        (failed(137, word="OOMKilled", node="n"), ""),
        (failed(65, node="n"), ""),
    ],
)
def test_which_nodes_may_be_to_blame(state: PodState, node: str) -> None:
    found = verdict(state)
    assert isinstance(found, Broken)
    assert found.node == node


def test_a_node_on_which_nothing_starts_may_be_to_blame() -> None:
    found = verdict(running(node="good"), pod(1, scheduled=START, node="bad"), now=CONFIG.start_deadline_seconds)
    assert isinstance(found, Broken)
    assert found.node == "bad"


def test_a_series_grows_and_is_forgotten_after_a_calm_run() -> None:
    used = Restarts()
    pauses = []
    for _ in range(10):
        used = in_series(used=used, ran_seconds=0, node="n")
        pauses.append(delay_seconds(reason="Preempted", used=used))
    assert pauses == [0, 10, 20, 40, 80, 160, 300, 300, 300, 300]
    assert used.nodes == ["n"] * 8
    calm = in_series(used=used, ran_seconds=600, node="")
    assert (calm.rapid, calm.nodes, delay_seconds(reason="Preempted", used=calm)) == (0, [], 0)
