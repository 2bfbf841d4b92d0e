"""A proven version whose baseline is not what is stable now is evaluated again first: with what it would replace."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.golden import check
from tests.simulation.comparison_jobs import Ends
from tests.simulation.endpoint_world import (
    CONFIG,
    EVALUATION,
    EndpointWorld,
    endpoint_manifest,
    version_manifest,
)

from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointStatus
from finetune_api.modelversion import ModelVersion
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.comparison import comparison
from finetune_operator.endpoint.comparison.comparison_job import comparison_manifests

COMPARING = "v1 serves all requests; comparing v2 with v1, which is stable now"


async def with_stable(**rollout: Any) -> EndpointWorld:
    """An endpoint that serves v1."""
    world = EndpointWorld()
    await world.create(endpoint_manifest(guard={"durationSeconds": 5}, **rollout))
    await world.create(version_manifest("v1", planned=True))
    await world.run(until=serving("v1"))
    return world


async def offer(
    world: EndpointWorld, name: str, *ends: Ends, baseline: str = "7", policy: str = "Hold", **more: Any
) -> Manifest:
    """A version that was compared with something else than v1."""
    if ends:
        world.comparisons.ends[name] = list(ends)
    manifest = version_manifest(name, baseline=baseline, planned=True, **more)
    manifest["spec"]["evaluation"]["plan"]["onInconclusive"] = policy
    return await world.create(manifest)


def serving(name: str) -> Any:
    return lambda status: status.phase == "Idle" and status.stable is not None and status.stable.name == name


def ended(name: str) -> Any:
    return lambda status: status.versions[-1].name == name and status.phase == "Idle"


def outcomes(status: ModelEndpointStatus) -> list[tuple[str, str]]:
    return [(each.name, each.outcome) for each in status.versions]


async def jobs(world: EndpointWorld) -> list[str]:
    return [each["metadata"]["name"] for each in await world.cluster.list(kind="Job", namespace="ml")]


async def orders(world: EndpointWorld) -> list[str]:
    found = await world.cluster.list(kind="ConfigMap", namespace="ml")
    return [name for each in found if "-compare-" in (name := each["metadata"]["name"])]


async def test_it_is_compared_with_what_is_stable_and_then_rolled_out() -> None:
    world = await with_stable()
    await offer(world, "v2")
    status = await world.run(until=lambda status: "comparing" in (status.message or ""))
    assert (status.phase, status.message, status.candidate) == ("Idle", COMPARING, None)
    reconciling = status.conditions[1]
    assert (reconciling.type, reconciling.reason) == ("Reconciling", "Comparing")
    status = await world.run(until=serving("v2"))
    assert outcomes(status) == [("v1", "Promoted"), ("v2", "Promoted")]
    assert world.comparisons.ran == [("v2", "v1")]
    (compared,) = status.comparisons
    assert (compared.version.name, compared.baseline.name) == ("v2", "v1")
    assert (compared.verdict, compared.accepted) == ("Pass", True)
    assert [row.metric for row in compared.results] == ["exact_match"]
    assert (compared.report or "").startswith("pvc://models/runs/v2/comparisons/")
    assert "Canary" in world.phases, "it goes through every step"
    assert (await jobs(world), await orders(world)) == ([], []), "nothing is left of it"
    told = [event.reason for event in world.cluster.events]
    assert told.count("Comparing") == 1
    assert told.count("Proven") == 1


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("Fail", "compared with v1: worse than v1"), ("Inconclusive", "compared with v1: not decided against v1")],
)
async def test_what_does_not_pass_is_rejected_and_not_tried_again(verdict: Ends, words: str) -> None:
    world = await with_stable()
    await offer(world, "v2", verdict, policy="Reject")
    status = await world.run(until=ended("v2"))
    await world.settle(ticks=10)
    assert outcomes(status) == [("v1", "Promoted"), ("v2", "Rejected")]
    assert status.versions[-1].reason.startswith(words)
    assert (status.comparisons[0].verdict, status.comparisons[0].accepted) == (verdict, False)
    assert world.comparisons.ran == [("v2", "v1")]
    assert await world.servers() == ["v1"]
    assert "Shadowing" not in world.phases
    assert (await jobs(world), await orders(world)) == ([], [])


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_an_undecided_one_under_hold_waits_for_a_person(decision: str) -> None:
    world = await with_stable()
    uid = (await offer(world, "v2", "Inconclusive"))["metadata"]["uid"]
    status = await world.run(until=lambda status: status.held is not None and status.comparisons)
    await world.settle(ticks=10)
    assert outcomes(status) == [("v1", "Promoted")]
    assert (status.held.name if status.held else "", status.comparisons[0].held) == ("v2", True)
    world.annotate(**{decision: uid, "requested_by": "ann"})
    status = await world.run(until=ended("v2") if decision == "reject" else serving("v2"))
    assert outcomes(status)[-1] == ("v2", "Rejected" if decision == "reject" else "Promoted")
    assert world.comparisons.ran == [("v2", "v1")], "it is not compared again"


async def test_the_policy_of_its_job_may_let_an_undecided_one_go_on() -> None:
    world = await with_stable()
    await offer(world, "v2", "Inconclusive", policy="Proceed")
    status = await world.run(until=serving("v2"))
    assert (status.comparisons[0].verdict, status.comparisons[0].accepted) == ("Inconclusive", True)


async def test_servers_are_guarded_while_they_serve() -> None:
    world = await with_stable()
    guards = {
        (kind, name) for kind, _, name in world.cluster.snapshot() if kind in ("NetworkPolicy", "PodDisruptionBudget")
    }
    served = (await world.status()).stable
    assert served is not None
    budgets = {name for kind, name in guards if kind == "PodDisruptionBudget"}
    assert ("NetworkPolicy", "router-servers") in guards
    assert budgets == {"router-gateway", served.revision}


async def test_without_the_policy_that_was_made_before_everybody_reaches_the_servers() -> None:
    world = await with_stable()
    world.restart_operator(config=CONFIG.model_copy(update={"server_network_policy": False}))
    await world.settle(ticks=3)
    assert not [name for kind, _, name in world.cluster.snapshot() if kind == "NetworkPolicy"]


async def test_a_failed_attempt_is_made_again() -> None:
    world = await with_stable()
    await offer(world, "v2", "Crash", "Pass")
    status = await world.run(until=lambda status: "attempt 1 ended" in (status.message or ""))
    assert status.message == f"{COMPARING}: attempt 1 ended (InternalError: oh)"
    began = world.now
    await world.run(until=lambda _: len(world.comparisons.ran) == 2)
    assert 25 <= (world.now - began).total_seconds() <= 35
    await world.run(until=serving("v2"))
    assert (await jobs(world), await orders(world)) == ([], [])


async def test_what_fails_for_ever_is_not_tried_for_ever_and_what_serves_goes_on() -> None:
    world = await with_stable()
    await offer(world, "v2", "Crash")
    await world.settle(ticks=60, every=5)
    status = await world.status()
    assert len(world.comparisons.ran) == 3
    assert status.phase == "Idle"
    message = status.message or ""
    assert message.startswith("v1 serves all requests; v2 could not be compared with v1, which is stable now (Internal")
    names = await jobs(world)
    assert "then delete its Jobs (label finetune.dev/comparison=" in message
    assert [each.type for each in status.conditions if each.status == "True"] == ["Ready", "Available"]
    assert [event.reason for event in world.cluster.events].count("ComparisonFailed") == 1
    # The way out that it names.
    world.comparisons.ends["v2"] = ["Pass"]
    for name in names:
        world.cluster.remove(kind="Job", namespace="ml", name=name)
    await world.run(until=serving("v2"))


async def test_interruptions_are_not_its_fault() -> None:
    world = await with_stable()
    world.check_attempts = False
    await offer(world, "v2", *["Interrupted"] * 5, "Pass")  # type: ignore[list-item]
    began = world.now
    await world.run(until=lambda _: len(world.comparisons.ran) == 6, ticks=90, every=10)
    assert (world.now - began).total_seconds() > 30 + 60 + 120 + 240 + 300, "one soon after another, they wait"
    await world.run(until=serving("v2"))


async def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MOST_ATTEMPTS", 5)
    world = await with_stable()
    world.check_attempts = False
    await offer(world, "v2", "Interrupted")
    await world.run(until=lambda status: "could not be compared" in (status.message or ""), ticks=60, every=10)
    await world.settle(ticks=60, every=10)
    assert len(world.comparisons.ran) == 5


async def test_what_cannot_become_better_by_itself_is_tried_once() -> None:
    world = await with_stable()
    await offer(world, "v2", "BadConfiguration")
    status = await world.run(until=lambda status: "could not be compared" in (status.message or ""))
    assert "(LabelsUnknown: oh); put that right, then delete its Jobs" in (status.message or "")
    await world.settle(ticks=40, every=5)
    assert len(world.comparisons.ran) == 1


async def test_an_older_version_is_tried_where_the_newest_cannot_be_compared() -> None:
    world = await with_stable()
    await offer(world, "v2", baseline="1")
    await offer(world, "v3", "BadConfiguration")
    status = await world.run(until=serving("v2"))
    assert outcomes(status)[-1] == ("v2", "Promoted")


async def test_waiting_for_a_node_says_so() -> None:
    world = await with_stable()
    await offer(world, "v2", "NoNode")
    status = await world.run(until=lambda status: "no node has a GPU" in (status.message or ""))
    assert status.message == f"{COMPARING}: 1 pod of 1 waiting for a node: no node has a GPU"


async def test_a_job_that_gets_no_pods_says_where_to_look() -> None:
    world = await with_stable()
    await offer(world, "v2", "NoPods")
    status = await world.run(until=lambda status: "created" in (status.message or ""))
    (name,) = await jobs(world)
    assert status.message == f"{COMPARING}: 0 of 1 pods were created; kubectl describe job {name} says why"


async def test_a_newer_version_takes_its_place() -> None:
    world = await with_stable()
    await offer(world, "v2", "Runs")
    await world.run(until=lambda _: bool(world.comparisons.ran))
    await offer(world, "v3")
    status = await world.run(until=serving("v3"))
    assert outcomes(status) == [("v1", "Promoted"), ("v2", "Superseded"), ("v3", "Promoted")]
    assert world.comparisons.ran == [("v2", "v1"), ("v3", "v1")]
    assert (await jobs(world), await orders(world)) == ([], [])


async def test_what_was_compared_with_what_is_not_stable_any_more_is_compared_again() -> None:
    world = await with_stable()
    await offer(world, "v2", baseline="1")
    await world.run(until=serving("v2"))
    await offer(world, "v3", "Runs", "Pass")
    await world.run(until=lambda _: bool(world.comparisons.ran))
    world.annotate(rollback=(await world.status()).stable.uid, requested_by="ann")  # type: ignore[union-attr]
    await world.run(until=serving("v1"))
    world.comparisons.ends["v3"] = ["Pass"]
    status = await world.run(until=serving("v3"))
    assert world.comparisons.ran == [("v3", "v2"), ("v3", "v1")]
    assert [each.baseline.name for each in status.comparisons] == ["v1"]


async def test_a_newer_version_with_another_baseline_waits_for_the_end_of_a_rollout() -> None:
    world = await with_stable()
    await offer(world, "v2", baseline="1")
    await world.run(until=lambda status: status.phase == "Shadowing")
    await offer(world, "v3")
    status = await world.run(until=lambda status: status.phase == "Guarding")
    assert world.comparisons.ran == []
    status = await world.run(until=serving("v3"))
    assert outcomes(status) == [("v1", "Promoted"), ("v2", "Promoted"), ("v3", "Promoted")]
    assert world.comparisons.ran == [("v3", "v2")]


async def test_a_pinned_version_is_compared_too_and_the_candidate_under_way_is_left() -> None:
    world = await with_stable()
    await offer(world, "v2", verdict="Pass")
    world.comparisons.ends["v2"] = ["Runs"]
    await offer(world, "v3", baseline="1")
    await world.run(until=lambda status: status.candidate is not None and status.candidate.name == "v3")
    world.comparisons.ends["v2"] = ["Pass"]
    world.change_spec(version="v2")
    status = await world.run(until=serving("v2"))
    assert outcomes(status) == [("v1", "Promoted"), ("v2", "Superseded"), ("v3", "Superseded"), ("v2", "Promoted")]
    assert [each.version.name for each in status.comparisons] == ["v2"]


async def test_a_pinned_version_that_cannot_be_compared_stalls_with_the_reason_and_does_not_loop() -> None:
    world = await with_stable()
    await offer(world, "v2", "BadConfiguration", verdict="Pass")
    world.change_spec(version="v2")
    await world.settle(ticks=20, every=5)
    status = await world.status()
    stalled = next(each for each in status.conditions if each.type == "Stalled")
    assert stalled.reason == "ComparisonFailed"
    assert len(world.comparisons.ran) == 1


async def test_paused_it_waits_and_nothing_is_lost() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda _: bool(world.comparisons.ran))
    world.annotate(pause="true")
    await world.settle(ticks=10)
    status = await world.status()
    assert (status.phase, status.comparisons) == ("Paused", [])
    world.annotate(pause=None)
    await world.run(until=serving("v2"))
    assert world.comparisons.ran == [("v2", "v1")]


async def test_without_the_record_of_what_is_stable_it_says_so() -> None:
    world = await with_stable()
    world.cluster.remove(kind="ModelVersion", namespace="ml", name="v1")
    await offer(world, "v2")
    status = (await world.settle(ticks=5)).message or ""
    assert "v1 is stable now, whose ModelVersion is gone: restore it, or pin v2" in status


async def test_what_is_stable_may_have_been_made_for_another_endpoint() -> None:
    world = await with_stable()
    world.cluster.edit(
        kind="ModelVersion", namespace="ml", name="v1", change=lambda found: found["metadata"].pop("labels")
    )
    await offer(world, "v2")
    await world.run(until=serving("v2"))
    assert world.comparisons.ran == [("v2", "v1")]


def test_the_job_is_as_recorded() -> None:
    endpoint = endpoint_manifest()
    endpoint["metadata"]["uid"] = "e-uid"
    version, baseline = (ModelVersion.model_validate(version_manifest(name, planned=True)) for name in ("v2", "v1"))
    plan = EVALUATION.model_copy(
        update={"gpus": 1, "labels": {"kueue.x-k8s.io/queue-name": "gpus"}, "run": "pvc://models/runs/v2"}
    )
    manifests = comparison_manifests(
        endpoint=ModelEndpoint.from_object(endpoint),
        version=version,
        baseline=baseline,
        plan=plan,
        key="0a1b2c3d",
        attempt=1,
        config=CONFIG,
    )
    check("comparison", list(manifests))
