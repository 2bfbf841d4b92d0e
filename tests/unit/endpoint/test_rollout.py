"""Whole rollouts against a simulated cluster: what ends where, and what must never happen on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.simulation.crashing import CrashingCluster, KilledError
from tests.simulation.endpoint_world import PROMPTS, EndpointWorld, Quality, endpoint_manifest, version_manifest
from tests.simulation.world import void

from finetune_api.modelendpoint import HeldVersion, ModelEndpointStatus
from finetune_api.modelversion import ModelVersion
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.finish import ANALYSIS_KEY
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.rollout import choose


def serving(name: str) -> Any:
    """Until this version serves and nothing is under way."""
    return lambda status: status.phase == "Idle" and status.stable is not None and status.stable.name == name


def outcomes(status: ModelEndpointStatus) -> list[tuple[str, str]]:
    return [(each.name, each.outcome) for each in status.versions]


async def with_stable(**rollout: Any) -> EndpointWorld:
    """An endpoint that serves v1."""
    world = EndpointWorld()
    await world.create(endpoint_manifest(**rollout))
    await world.create(version_manifest("v1"))
    await world.run(until=serving("v1"))
    return world


async def offer(world: EndpointWorld, name: str, quality: Quality | None = None, **more: Any) -> str:
    """A newer version that was compared with v1; its UID."""
    made = await world.create(version_manifest(name, baseline=more.pop("baseline", "1"), **more), quality=quality)
    return str(made["metadata"]["uid"])


async def test_the_first_version_serves_as_soon_as_it_is_ready() -> None:
    world = await with_stable()
    status = await world.status()
    assert world.phases == ["Empty", "Promoting", "Idle"]
    assert outcomes(status) == [("v1", "Promoted")]
    routes = await world.routes()
    assert routes is not None
    assert [variant.name for variant in routes.variants.values()] == ["v1"]
    assert {each.type: each.status for each in status.conditions} == {"Ready": "True", "Available": "True"}
    assert status.message == "v1 serves all requests"


async def test_a_good_version_goes_through_every_phase() -> None:
    world = await with_stable(approval="Manual")
    uid = await offer(world, "v2")
    status = await world.run(until=lambda status: status.phase == "AwaitingApproval")
    assert status.stable is not None
    assert status.stable.name == "v1", "nobody has approved it"
    assert f"finetune.dev/approve: {uid}" in (status.message or "")
    world.annotate(approve=uid, requested_by="ann")
    status = await world.run(until=serving("v2"))
    assert world.phases[2:] == [
        "Idle", "Shadowing", "Canary", "AwaitingApproval", "Promoting", "Guarding", "Idle"
    ]  # fmt: skip
    assert outcomes(status) == [("v1", "Promoted"), ("v2", "Promoted")]
    assert [each.by for each in status.versions] == ["operator", "ann"], "who approved it is on record"
    await world.settle()
    assert await world.servers() == ["v2"], "the old one goes when the guard is over"


async def test_an_approval_that_nobody_had_to_give_is_not_on_record() -> None:
    world = await with_stable(approval="Automatic")
    uid = await offer(world, "v2")
    world.annotate(approve=uid, requested_by="ann")
    status = await world.run(until=serving("v2"))
    assert status.versions[-1].by == "operator"


async def test_a_version_that_fails_in_shadow_never_sees_a_client() -> None:
    world = await with_stable()
    uid = await offer(world, "v2", Quality(error=0.5))
    status = await world.run(until=lambda status: status.versions[-1].name == "v2" and serving("v1")(status))
    assert outcomes(status)[-1] == ("v2", "Rejected")
    assert "error_rate" in status.versions[-1].reason
    assert not any(key[2] == uid for gateway in world.gateways for key in gateway.arms), "no client was sent to it"
    assert "Canary" not in world.phases
    await world.settle()
    assert await world.servers() == ["v1"]


async def test_where_no_client_asks_held_out_prompts_decide() -> None:
    world = EndpointWorld(requests_per_tick=0)
    await world.create(endpoint_manifest(shadow={"percent": 100, "minSamples": 40, "probe": {"ratePerSecond": 5}}))
    await world.create(version_manifest("v1"))
    await world.run(until=serving("v1"))
    await offer(world, "v2", Quality(bad=0.9))
    status = await world.run(until=lambda status: len(status.versions) == 2 and status.phase == "Idle")
    assert outcomes(status)[-1] == ("v2", "Rejected")
    await offer(world, "v3")
    before = len(world.phases)
    await world.run(until=serving("v3"))
    assert [each for each in world.phases[before:] if each in ("Shadowing", "Canary")] == ["Shadowing", "Canary"]


async def test_a_step_that_wants_more_than_there_are_prompts_waits_for_clients() -> None:
    world = EndpointWorld(requests_per_tick=0)
    shadow = {"percent": 100, "minSamples": 40, "probe": {"ratePerSecond": 5}}
    steps = [{"name": "half", "percent": 50, "minSamples": PROMPTS + 20}]
    await world.create(endpoint_manifest(shadow=shadow, steps=steps))
    await world.create(version_manifest("v1"))
    await world.run(until=serving("v1"))
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    await world.settle(ticks=30)
    status = await world.status()
    assert status.phase == "Canary"
    assert [row.samples for row in status.analysis] == [PROMPTS, PROMPTS]
    world.requests_per_tick = 20
    await world.run(until=serving("v2"))


async def test_a_version_that_gets_worse_in_canary_is_rolled_back_and_not_tried_again() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.qualities["v2"].bad = 0.8
    status = await world.run(until=lambda status: status.versions[-1].name == "v2" and serving("v1")(status))
    assert outcomes(status)[-1] == ("v2", "RolledBack")
    await world.settle(ticks=20)
    assert (await world.status()).phase == "Idle"
    condition = {each.type: each.message for each in (await world.status()).conditions}["RolledBack"]
    assert condition.startswith("v2: quality")


@pytest.mark.parametrize("trouble", [Quality(error=1.0), Quality(bad=0.9)], ids=["errors", "garbage"])
async def test_a_regression_after_promotion_goes_back_to_the_warm_version(trouble: Quality) -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Guarding")
    await world.settle(ticks=10)
    began = world.now
    world.qualities["v2"].error, world.qualities["v2"].bad = trouble.error, trouble.bad
    status = await world.run(until=lambda status: status.phase == "RollingBack")
    assert (world.now - began).total_seconds() <= 5
    status = await world.run(until=serving("v1"))
    assert outcomes(status)[-1] == ("v2", "RolledBack")
    assert world.stables == ["v1", "v2", "v1"]


async def test_the_way_back_ends_also_where_latency_is_judged() -> None:
    error_rate = {"name": "error_rate", "maxRegression": 0.05}
    latency = {"name": "latency_seconds", "limit": 1.0, "maxRegression": 0.1}
    world = await with_stable(metrics=[error_rate, latency])
    await offer(world, "v2", Quality(error=0.5))
    await world.run(until=lambda status: status.phase == "RollingBack")
    await world.run(until=serving("v1"))


async def test_a_breaker_that_opened_is_latched() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.qualities["v2"].error = 1.0
    world.requests_per_tick = 4000
    status = await world.run(until=lambda status: status.phase == "RollingBack")
    assert "a gateway left it" in status.versions[-1].reason or "error_rate" in status.versions[-1].reason


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        (Quality(ready_after=None), "not ready within"),
        (Quality(ready_after=None, exits={"exitCode": 1, "reason": "Error"}), "not ready within"),
        (
            Quality(
                ready_after=None,
                exits={"exitCode": 78, "message": '{"reason": "ArtifactChanged", "message": "the digest differs"}'},
            ),
            "ArtifactChanged: the digest differs",
        ),
    ],
    ids=["never ready", "crash loop", "digest"],
)
async def test_a_candidate_that_cannot_be_served_is_rejected(quality: Quality, words: str) -> None:
    world = await with_stable(progressDeadlineSeconds=30)
    await offer(world, "v2", quality)
    status = await world.run(until=lambda status: status.versions[-1].name == "v2" and serving("v1")(status))
    assert outcomes(status)[-1] == ("v2", "Rejected")
    assert words in status.versions[-1].reason


async def test_a_candidate_without_a_gpu_waits() -> None:
    world = await with_stable(progressDeadlineSeconds=30)
    await offer(world, "v2", Quality(ready_after=None, unschedulable="0/2 nodes have nvidia.com/gpu"))
    await world.settle(ticks=20, every=5)
    status = await world.status()
    assert status.phase == "Shadowing"
    assert status.message == "v2 waits for a node: 0/2 nodes have nvidia.com/gpu"
    world.qualities["v2"] = Quality()
    await world.run(until=serving("v2"))


GONE = Quality(ready_after=None, unschedulable="its node is gone")


async def test_nobody_is_moved_to_a_version_whose_servers_have_gone_while_it_waited_for_a_person() -> None:
    world = await with_stable(approval="Manual")
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "AwaitingApproval")
    world.requests_per_tick = 0  # so no gateway notices
    world.qualities["v2"] = GONE
    world.annotate(approve=uid, requested_by="ann")
    status = await world.settle(ticks=20)
    assert (status.phase, status.stable and status.stable.name) == ("AwaitingApproval", "v1")
    assert status.next is not None
    assert status.next.waits_for == ["the servers of v2 to be ready: its node is gone"]
    assert "waits for the servers of v2 to be ready: its node is gone" in (status.message or "")
    world.qualities["v2"] = Quality()
    await world.run(until=serving("v2"))


async def test_a_version_whose_servers_have_gone_takes_no_further_step() -> None:
    """Its held-out prompts may all have been asked before."""
    world = await with_stable(shadow={"percent": 100, "minSamples": 40, "probe": {"ratePerSecond": 50}})
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.requests_per_tick = 0
    world.qualities["v2"] = GONE
    status = await world.settle(ticks=12, every=5)
    assert (status.phase, status.step and status.step.name) == ("Canary", "ten")
    assert status.next is not None
    assert status.next.waits_for[0] == "the servers of v2 to be ready: its node is gone"
    world.qualities["v2"] = Quality()
    await world.run(until=serving("v2"))


async def test_the_version_before_stays_warm_until_the_new_one_has_servers() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Guarding")
    world.requests_per_tick = 0
    world.qualities["v2"] = GONE
    status = await world.settle(ticks=24, every=5)
    assert status.phase == "Guarding"
    assert status.next is not None
    assert status.next.waits_for[0] == "the servers of v2 to be ready: its node is gone"
    assert await world.servers() == ["v1", "v2"]
    world.qualities["v2"] = Quality()
    await world.run(until=serving("v2"))


async def test_a_newer_version_supersedes_a_candidate() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    await offer(world, "v3")
    status = await world.run(until=serving("v3"))
    assert outcomes(status) == [("v1", "Promoted"), ("v2", "Superseded"), ("v3", "Promoted")]


async def test_older_versions_that_waited_are_not_tried_after_a_newer_one() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await offer(world, "v3", Quality(ready_after=None, exits={"exitCode": 78}))
    status = await world.run(until=lambda status: status.versions[-1].name == "v3" and serving("v1")(status))
    assert outcomes(status) == [("v1", "Promoted"), ("v2", "Superseded"), ("v3", "Rejected")]


async def test_what_was_compared_with_another_version_waits_for_a_new_comparison() -> None:
    world = await with_stable()
    await offer(world, "v2", baseline="7")
    await world.settle(ticks=5)
    status = await world.status()
    assert status.phase == "Idle"
    assert "run its job again to compare it" in (status.message or "")


async def test_rejected_by_a_person() -> None:
    world = await with_stable()
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.annotate(reject=uid, requested_by="ann")
    status = await world.run(until=serving("v1"))
    last = status.versions[-1]
    assert (last.name, last.outcome, last.by) == ("v2", "Rejected", "ann")


def withdraw(world: EndpointWorld, name: str, *, lingers: bool = False) -> None:
    """kubectl delete modelversion. `lingers`: somebody's finalizer keeps the object for a while."""
    if lingers:
        world.cluster.edit(
            kind="ModelVersion",
            namespace="ml",
            name=name,
            change=lambda found: found["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"),
        )
    else:
        world.cluster.remove(kind="ModelVersion", namespace="ml", name=name)


@pytest.mark.parametrize("lingers", [False, True])
@pytest.mark.parametrize("stage", ["Starting", "Shadow", "Canary", "Approval"])
async def test_a_candidate_whose_model_version_is_deleted_is_withdrawn(stage: str, lingers: bool) -> None:
    world = await with_stable(approval="Manual")
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.step is not None and status.step.stage == stage)
    world.annotate(approve=uid, requested_by="ann")
    withdraw(world, "v2", lingers=lingers)
    status = await world.run(until=serving("v1"))
    status = await world.settle(ticks=60)
    last = status.versions[-1]
    assert (last.name, last.outcome, last.reason) == ("v2", "Rejected", "its ModelVersion was deleted")
    assert (outcomes(status), world.stables) == ([("v1", "Promoted"), ("v2", "Rejected")], ["v1"])
    assert await world.servers() == ["v1"]


@pytest.mark.parametrize("phase", ["Promoting", "Guarding", "Idle"])
async def test_what_serves_goes_on_to_serve_when_its_model_version_is_deleted(phase: str) -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == phase and status.stable and status.stable.name == "v2")
    withdraw(world, "v2")
    status = await world.settle(ticks=80)
    assert (status.phase, outcomes(status)[-1], await world.servers()) == ("Idle", ("v2", "Promoted"), ["v2"])


async def test_a_candidate_whose_model_version_cannot_be_read_goes_on() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    newer = {"task": "Translation"}  # of an operator that this one was rolled back from
    world.cluster.edit(kind="ModelVersion", namespace="ml", name="v2", change=lambda found: found["spec"].update(newer))
    assert outcomes(await world.run(until=serving("v2")))[-1] == ("v2", "Promoted")


async def test_a_pinned_candidate_that_was_made_for_another_endpoint_is_not_taken_for_deleted_once_unpinned() -> None:
    world = await with_stable()
    manifest = version_manifest("v2", baseline="1")
    manifest["metadata"]["labels"] = {"finetune.dev/endpoint": "other"}
    manifest["spec"]["endpointRef"] = {"name": "other"}
    await world.create(manifest)
    world.change_spec(version="v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.change_spec(version="")
    assert outcomes(await world.run(until=serving("v2")))[-1] == ("v2", "Promoted")


HELD = {"verdict": "Inconclusive", "accepted": False, "held": True}


@pytest.mark.parametrize("pinned", [False, True])
async def test_an_undecided_version_under_hold_waits_for_an_approval(pinned: bool) -> None:
    world = await with_stable()
    uid = await offer(world, "v2", **HELD)
    if pinned:
        world.change_spec(version="v2")
    status = await world.settle(ticks=10)
    assert (status.held.name if status.held else "", outcomes(status)) == ("v2", [("v1", "Promoted")])
    (waits,) = [each for each in status.conditions if each.type == "AwaitingApproval"]
    assert "v2: not decided against before (evaluation.onInconclusive: Hold); approve it or reject it" in waits.message
    world.annotate(approve=uid, requested_by="ann")
    status = await world.run(until=serving("v2"))
    assert status.held is None
    assert not [each for each in status.conditions if each.type in ("RequestVoid", "AwaitingApproval")]


AGAIN = "remove the annotation finetune.dev/approve, then approve it"


def told(status: ModelEndpointStatus) -> str:
    return next((each.message for each in status.conditions if each.type == "RequestVoid"), "")


async def approve_again(world: EndpointWorld, uid: str) -> None:
    """As the operator says: take the one before away, then approve."""
    world.annotate(approve=None)
    await world.settle(ticks=2)
    world.annotate(approve=uid, requested_by="bob")


@pytest.mark.parametrize("hold", ["evaluation", "shadow", "regression"])
async def test_an_approval_counts_for_the_hold_that_it_was_given_in_and_for_nothing_else(hold: str) -> None:
    policy = {"shadow": {"shadow": {"percent": 100, "minSamples": 40, "maxDurationSeconds": 20}}}.get(hold, {})
    world = await with_stable(approval="Manual", onRegression="Pause", **policy)
    world.requests_per_tick = 0 if hold == "shadow" else 20
    uid = await offer(world, "v2", **(HELD if hold == "evaluation" else {}))
    if hold == "regression":
        await world.run(until=lambda status: status.step is not None and status.step.name == "half")
        world.qualities["v2"].bad = 0.9
    holds: dict[str, Callable[[ModelEndpointStatus], object]] = {
        "evaluation": lambda status: status.held,
        "shadow": lambda status: "is over" in (status.message or ""),
        "regression": lambda status: status.phase == "Paused",
    }
    await world.run(until=holds[hold])
    world.annotate(approve=uid, requested_by="ann")
    await world.settle(ticks=3)
    world.requests_per_tick = 20
    await world.run(until=lambda status: status.step is not None and status.step.stage == "Approval")
    status = await world.settle(ticks=10)
    assert status.phase == "AwaitingApproval", "nobody has approved the promotion"
    assert AGAIN in (status.message or "")
    assert AGAIN in told(status)
    await approve_again(world, uid)
    status = await world.run(until=lambda status: status.candidate is None)
    assert (outcomes(status)[-1], status.versions[-1].by) == (("v2", "Promoted"), "bob")


async def test_an_approval_against_one_baseline_is_none_against_the_next() -> None:
    world = await with_stable(supersede=False)
    await offer(world, "v2")
    await world.run(until=lambda status: status.candidate)
    world.comparisons.ends["v3"] = ["Inconclusive"]
    uid = await offer(world, "v3", planned=True, **HELD)
    await world.run(until=lambda status: status.held)
    world.annotate(approve=uid, requested_by="ann")
    status = await world.run(until=lambda status: status.comparisons)
    assert (status.stable.name if status.stable else "", status.comparisons[0].held) == ("v2", True)
    status = await world.settle(ticks=10)
    assert (status.candidate, AGAIN in told(status)) == (None, True)
    await approve_again(world, uid)
    await world.run(until=lambda status: status.candidate)


@pytest.mark.parametrize(
    ("name", "doubt"),
    [
        ("proven", None),
        ("held", "not decided against v1 (approved by ann)"),
        ("proceed", "not decided against v1 (evaluation.onInconclusive: Proceed)"),
        ("pinned", "never compared with v1, which it is to replace"),
        ("shadow held", "not decided in shadow (approved by ann)"),
        ("shadow proceed", "not decided in shadow (rollout.onInconclusive: Proceed)"),
        ("regression", "(accepted by ann)"),
    ],
)
async def test_what_was_let_go_on_is_never_called_proven(name: str, doubt: str | None) -> None:
    shadow = {"percent": 100, "minSamples": 40, "maxDurationSeconds": 20}
    policy = {"onInconclusive": "Proceed"} if name == "shadow proceed" else {}
    world = await with_stable(shadow=shadow, steps=[], onRegression="Pause", **policy)
    first = (await world.status()).stable
    assert first is not None
    assert (first.proven, first.unproven) == (False, "the first version: nothing served that it could be compared with")
    world.requests_per_tick = 0 if name.startswith("shadow") else 20
    more: dict[str, Any] = {
        "held": HELD,
        "proceed": HELD | {"accepted": True, "held": None},
        "pinned": {"baseline": "0"},
    }
    uid = await offer(world, "v2", Quality(bad=0.9 if name == "regression" else 0), **more.get(name, {}))
    if name == "pinned":
        world.change_spec(version="v2")
    if name in ("held", "shadow held", "regression"):
        await world.run(until=lambda status: "approve it" in (status.message or ""))
        world.annotate(approve=uid, requested_by="ann")
        world.qualities["v2"].bad = 0
    status = await world.run(until=serving("v2"))
    assert status.stable is not None
    assert status.stable.proven == (doubt is None)
    assert (doubt or "") in (status.stable.unproven or "")
    last = status.versions[-1]
    assert (last.proven, last.reason) == (status.stable.proven, status.stable.unproven or "proven")
    told = [each.message for each in world.cluster.events if "promoted" in each.message and "v2" in each.message]
    assert [("not proven" in each, (doubt or "") in each) for each in told] == [(doubt is not None, True)]
    assert not any(" proven" in each.message.replace("not proven", "") for each in world.cluster.events)


async def test_back_to_a_version_says_what_was_proven_of_it() -> None:
    world = await with_stable()
    v2 = await offer(world, "v2")
    await world.run(until=serving("v2"))
    world.annotate(rollback=v2, requested_by="ann")
    status = await world.run(until=serving("v1"))
    assert status.stable is not None
    assert (status.stable.proven, status.versions[-1].proven) == (False, False)
    world.annotate(rollback=None)
    world.change_spec(version="v2")
    status = await world.settle(ticks=5)
    assert "was tried and rolled back" in (status.message or "")


async def test_an_approval_is_not_lost_where_the_write_that_uses_it_fails() -> None:
    world = await with_stable(approval="Manual")
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "AwaitingApproval")
    world.annotate(approve=uid, requested_by="ann")
    for number in (1, 2, 3):
        world.restart_operator(cluster=lambda inner, number=number: CrashingCluster(inner=inner, kill_at=number))  # type: ignore[misc]
        with pytest.raises(KilledError):
            await world.settle(ticks=10)
    world.restart_operator()
    status = await world.run(until=serving("v2"))
    assert [each.by for each in status.versions] == ["operator", "ann"]
    assert status.approval is not None
    assert (status.approval.by, status.approval.used) == ("ann", True)


async def test_after_a_restore_an_approval_from_before_lets_nothing_pass() -> None:
    world = await with_stable(approval="Manual")
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "AwaitingApproval")
    world.annotate(pause="true")
    world.annotate(approve=uid, requested_by="ann")
    await world.settle(ticks=2)
    world.cluster.edit(
        kind="ModelEndpoint", namespace="ml", name="router", change=lambda found: found.__setitem__("status", {})
    )
    world.annotate(pause=None)
    await world.run(until=lambda status: status.step is not None and status.step.stage == "Approval")
    status = await world.settle(ticks=5)
    assert (status.phase, AGAIN in told(status)) == ("AwaitingApproval", True)


async def test_an_approval_that_the_operator_before_called_void_accepts_no_regression() -> None:
    """It noted no approvals: the step said that the one that is there was given before the version was held."""
    world = await with_stable(approval="Manual", onRegression="Pause")
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.step is not None and status.step.name == "half")
    world.annotate(approve=uid, requested_by="ann")
    await world.settle(ticks=2)
    world.qualities["v2"].bad = 0.9
    await world.run(until=lambda status: status.phase == "Paused")

    def as_before(found: dict[str, Any]) -> None:
        del found["status"]["approval"]
        found["status"]["step"]["voidApproval"] = True

    world.cluster.edit(kind="ModelEndpoint", namespace="ml", name="router", change=as_before)
    status = await world.settle(ticks=5)
    assert (status.phase, AGAIN in (status.message or "")) == ("Paused", True)
    await approve_again(world, uid)
    status = await world.run(until=lambda status: status.step is not None and status.step.stage == "Approval")
    assert status.step is not None
    assert status.step.accepted is not None


class ForgetfulCluster(CrashingCluster):
    """Its CRD is older than the operator: it knows `step.voidApproval`, and no `status.approval`."""

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        kept = {name: value for name, value in manifest["status"].items() if name != "approval"}
        return await super().replace_status(manifest=manifest | {"status": kept})


async def test_where_the_apiserver_forgets_approvals_one_from_before_a_regression_accepts_none() -> None:
    world = await with_stable(approval="Manual", onRegression="Pause")
    world.restart_operator(cluster=lambda inner: ForgetfulCluster(inner=inner))
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.step is not None and status.step.name == "half")
    world.annotate(approve=uid, requested_by="ann")
    world.qualities["v2"].bad = 0.9
    await world.run(until=lambda status: status.phase == "Paused")
    status = await world.settle(ticks=4)
    assert (status.phase, AGAIN in (status.message or "")) == ("Paused", True)
    await approve_again(world, uid)
    status = await world.run(until=lambda status: status.versions[-1].name == "v2")
    assert (status.versions[-1].outcome, status.versions[-1].by, status.versions[-1].proven) == (
        "Promoted", "bob", False
    )  # fmt: skip


async def test_an_approval_that_was_used_is_not_void_while_another_version_waits() -> None:
    world = await with_stable(approval="Manual")
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "AwaitingApproval")
    world.annotate(approve=uid, requested_by="ann")
    await world.run(until=serving("v2"))
    await offer(world, "v3", **HELD, baseline="2")
    status = await world.run(until=lambda status: status.held)
    assert told(status) == ""


async def test_back_to_a_version_whose_regression_under_guard_was_accepted_is_not_back_to_a_proven_one() -> None:
    world = await with_stable(onRegression="Pause", steps=[], guard={"durationSeconds": 60, "holdbackPercent": 20})
    v2 = await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Guarding")
    world.qualities["v2"].bad = 0.9
    await world.run(until=lambda status: status.phase == "Paused")
    world.annotate(approve=v2, requested_by="ann")
    world.qualities["v2"].bad = 0.0
    status = await world.run(until=serving("v2"))
    assert (status.versions[-1].proven, "(accepted by ann)" in status.versions[-1].reason) == (False, True)
    v3 = await offer(world, "v3", baseline="2")
    await world.run(until=serving("v3"))
    world.annotate(rollback=v3)
    status = await world.run(until=serving("v2"))
    assert status.stable is not None
    assert (status.stable.proven, "(accepted by ann)" in (status.stable.unproven or "")) == (False, True)


async def test_what_an_operator_before_began_is_not_said_to_have_been_stable() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.candidate)
    forget = lambda found: [found["status"]["candidate"].pop(name, None) for name in ("proven", "unproven")]  # noqa: E731
    world.cluster.edit(kind="ModelEndpoint", namespace="ml", name="router", change=forget)
    last = (await world.run(until=serving("v2"))).versions[-1]
    assert (last.proven, last.reason) == (None, "not known to be proven: begun by an operator that did not record it")


@pytest.mark.parametrize("noted", [True, False])
async def test_an_approval_from_before_an_upgrade_that_words_the_hold_otherwise_counts(
    noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noted by the operator before, or only given."""
    held = choose._held

    def in_other_words(observed: ObservedEndpoint, *, version: ModelVersion) -> HeldVersion | None:
        found = held(observed, version=version)
        return found and found.model_copy(update={"reason": "in other words"})

    monkeypatch.setattr(choose, "_held", in_other_words)
    world = await with_stable()
    uid = await offer(world, "v2", **HELD)
    await world.run(until=lambda status: status.held)
    world.annotate(pause="true", requested_by="ann")
    world.annotate(approve=uid)
    await world.settle(ticks=2)
    monkeypatch.undo()
    if not noted:
        forget = lambda found: found["status"].pop("approval")  # noqa: E731
        world.cluster.edit(kind="ModelEndpoint", namespace="ml", name="router", change=forget)
    world.annotate(pause=None)
    await world.run(until=serving("v2"))


async def test_an_older_held_version_can_be_approved() -> None:
    world = await with_stable()
    uid = await offer(world, "v2", **HELD)
    await world.run(until=lambda status: status.held)
    await offer(world, "v3", **HELD)
    await world.run(until=lambda status: status.held and status.held.name == "v3")
    world.annotate(pause="true", requested_by="ann")
    world.annotate(approve=uid)
    status = await world.settle(ticks=3)
    assert told(status) == ""
    world.annotate(pause=None)
    status = await world.run(until=serving("v2"))
    assert (status.held.name if status.held else "", told(status)) == ("v3", "")


async def test_all_versions_that_wait_for_a_person_are_named_and_each_can_be_rejected() -> None:
    world = await with_stable()
    uid = await offer(world, "v2", **HELD)
    await offer(world, "v3", **HELD)
    status = await world.settle(ticks=3)
    assert [each.name for each in status.all_held] == ["v3", "v2"]
    assert status.next is not None
    assert status.next.waits_for == ["a person to decide about v3, v2"]
    world.annotate(reject=uid, requested_by="ann")
    status = await world.settle(ticks=3)
    assert ([each.name for each in status.all_held], outcomes(status)[-1]) == (["v3"], ("v2", "Rejected"))


async def test_an_endpoint_that_is_too_large_for_its_status_says_so() -> None:
    world = await with_stable()
    serving = endpoint_manifest()["spec"]["serving"]
    world.change_spec(serving=serving | {"podTemplate": {"spec": {"affinity": {"any": "x" * 300_000}}}})
    await offer(world, "v2")
    status = await world.settle(ticks=5)
    stalled = {each.type: each for each in status.conditions}["Stalled"]
    assert (stalled.reason, outcomes(status)) == ("TooLarge", [("v1", "Promoted")])
    assert "at most 262,144" in stalled.message


async def test_a_held_version_can_be_rejected_and_holds_up_nothing() -> None:
    world = await with_stable()
    uid = await offer(world, "v2", **HELD)
    await world.settle(ticks=3)
    await offer(world, "v3")
    status = await world.run(until=serving("v3"))
    assert outcomes(status)[-1] == ("v3", "Promoted")
    world.annotate(reject=uid, requested_by="ann")
    status = await world.settle(ticks=5)
    assert [(each.name, each.outcome, each.by) for each in status.versions if each.name == "v2"] in (
        [("v2", "Rejected", "ann")],
        [("v2", "Superseded", "operator")],
    )
    assert status.held is None


async def test_an_undecided_version_under_reject_is_never_tried() -> None:
    world = await with_stable()
    uid = await offer(world, "v2", verdict="Inconclusive", accepted=False)
    world.annotate(approve=uid)
    status = await world.settle(ticks=10)
    assert (status.held, outcomes(status)) == (None, [("v1", "Promoted")])


async def test_an_annotation_for_another_version_does_nothing() -> None:
    world = await with_stable(approval="Manual")
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "AwaitingApproval")
    world.annotate(approve="somebody-else", reject="somebody-else", rollback="somebody-else")
    await world.settle(ticks=10)
    status = await world.status()
    assert status.phase == "AwaitingApproval"
    (void,) = [each for each in status.conditions if each.type == "RequestVoid"]
    assert "finetune.dev/approve is void: it is for another version (somebody-else), not for v2" in void.message
    assert [each.reason for each in world.cluster.events].count("RequestVoid") == 1, "told once"
    world.annotate(approve=None, reject=None, rollback=None)
    await world.settle(ticks=3)
    assert not [each for each in (await world.status()).conditions if each.type == "RequestVoid"]


async def test_a_gateway_of_the_operator_before_may_be_restarted_as_ever() -> None:
    """It has no record yet, and somebody has restarted it: when is not ours to put back."""
    world = await with_stable()
    name: dict[str, Any] = {"namespace": "ml", "name": "router-gateway"}

    def restart(found: Any, at: str) -> None:
        template = found["spec"]["template"]["metadata"]
        template["annotations"] = {**template.get("annotations", {}), "kubectl.kubernetes.io/restartedAt": at}

    world.cluster.remove(kind="ControllerRevision", **name)
    world.cluster.edit(kind="Deployment", **name, change=lambda found: restart(found, "then"))
    await world.settle()
    world.cluster.edit(kind="Deployment", **name, change=lambda found: restart(found, "now"))
    await world.settle()
    found = await world.cluster.get(kind="Deployment", **name)
    assert found is not None
    assert found["spec"]["template"]["metadata"]["annotations"] == {"kubectl.kubernetes.io/restartedAt": "now"}
    assert "Contested" not in {each.type for each in (await world.status()).conditions}


async def test_paused_nothing_moves_but_a_regression_does() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.annotate(pause="true")
    await world.settle(ticks=20)
    status = await world.status()
    assert (status.phase, status.step.name if status.step else "") == ("Paused", "ten")
    world.qualities["v2"].error = 0.9
    status = await world.run(until=lambda status: status.versions[-1].name == "v2")
    assert outcomes(status)[-1] == ("v2", "RolledBack")


async def test_a_regression_may_wait_for_a_person() -> None:
    world = await with_stable(onRegression="Pause")
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.qualities["v2"].bad = 0.8
    status = await world.run(until=lambda status: status.phase == "Paused")
    assert "v2 got worse: quality" in (status.message or "")
    world.annotate(rollback=uid, requested_by="ann")
    status = await world.run(until=serving("v1"))
    assert outcomes(status)[-1] == ("v2", "RolledBack")


async def test_back_to_the_version_before_by_annotation_and_by_pin() -> None:
    world = await with_stable()
    uid = await offer(world, "v2")
    await world.run(until=serving("v2"))
    world.annotate(rollback=uid, requested_by="ann")
    status = await world.run(until=serving("v1"))
    assert outcomes(status)[2:] == [("v2", "RolledBack"), ("v1", "Promoted")]
    assert status.versions[2].by == "ann"
    assert "Guarding" not in world.phases[world.phases.index("Idle", 6) :], "nothing falls back to what was left"
    await offer(world, "v3")
    await world.run(until=serving("v3"))
    world.phases.clear()
    world.change_spec(version="v1")
    await world.run(until=serving("v1"))
    assert "Canary" not in world.phases, "it was stable before"


@pytest.mark.parametrize(
    ("pin", "reason"), [("nothing", "VersionNotFound"), ("bad", "NotProven")], ids=["missing", "not proven"]
)
async def test_a_pin_that_cannot_be_followed_says_why(pin: str, reason: str) -> None:
    world = await with_stable()
    await world.create(version_manifest("bad", letter="e", verdict="Fail"))
    world.change_spec(version=pin)
    await world.tick()
    await world.reconcile()
    status = await world.status()
    stalled = {each.type: each for each in status.conditions}["Stalled"]
    assert stalled.reason == reason
    assert pin in stalled.message
    assert (status.phase, status.stable.name if status.stable else "") == ("Idle", "v1")


async def test_restored_without_a_status_goes_on_to_serve() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    routes = await world.routes()
    world.cluster.edit(
        kind="ModelEndpoint", namespace="ml", name="router", change=lambda found: found.__setitem__("status", {})
    )
    world.restart_operator()
    status = await world.run(until=lambda status: status.stable is not None)
    assert status.stable is not None
    assert status.stable.name == "v1"
    assert routes is not None
    after = await world.routes()
    assert after is not None
    assert after.epoch >= routes.epoch
    await world.run(until=serving("v2"))


async def restored(world: EndpointWorld) -> None:
    """What a backup tool does: the children stay, without an owner; the objects come again, without status and UID.
    Pods that lost their owner are taken up again by what selects them."""
    kinds = ("ModelVersion", "ModelEndpoint")
    backup = [each for kind in kinds for each in await world.cluster.list(kind=kind, namespace="ml")]  # type: ignore[arg-type]
    for kind, namespace, name in world.cluster.snapshot():
        if kind == "Pod":
            continue
        world.cluster.edit(
            kind=kind,  # type: ignore[arg-type]
            namespace=namespace,
            name=name,
            change=lambda found: void(found["metadata"].pop("ownerReferences", None)),
        )
    for each in backup:
        metadata = each["metadata"]
        world.cluster.remove(kind=each["kind"], namespace="ml", name=metadata["name"])
        kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if key in metadata}
        await world.cluster.create(manifest={**each, "metadata": kept})
    world.restart_operator()


async def test_restored_under_new_uids_what_runs_goes_on_untouched() -> None:
    world = await with_stable()
    await offer(world, "v2", Quality(error=0.5))
    await world.run(until=lambda status: status.versions[-1].name == "v2" and serving("v1")(status))
    await world.settle()
    before, routes = await world.status(), await world.routes()
    running = {
        address: each["spec"]
        for address, each in world.cluster.snapshot().items()
        if address[0] in ("Deployment", "Pod")
    }
    await restored(world)
    status = await world.run(until=serving("v1"))
    await world.settle()
    snapshot = world.cluster.snapshot()
    assert {
        address: each["spec"] for address, each in snapshot.items() if address[0] in ("Deployment", "Pod")
    } == running
    assert await world.routes() == routes, "the same epoch: no gateway has noticed"
    assert status.stable is not None
    assert before.stable is not None
    assert (status.stable.uid, status.stable.digest) == (before.stable.uid, before.stable.digest)
    assert (await world.status()).phase == "Idle", "v2 was rejected once: it is not tried again"
    assert (await world.status()).message == "v1 serves all requests"
    endpoint = (await world.endpoint()).metadata.uid
    left = {
        address
        for address, each in snapshot.items()
        if address[0] not in ("ModelEndpoint", "ModelVersion", "Pod", "ControllerRevision")
        and [owner["uid"] for owner in each["metadata"].get("ownerReferences") or ()] != [endpoint]
    }
    assert not left, "all would go with the endpoint"
    world.change_spec(version="v1")
    await world.settle()
    assert (await world.status()).phase == "Idle", "what is pinned serves already"
    world.change_spec(version="")
    await world.create(version_manifest("v3", baseline="1"))
    await world.run(until=serving("v3"))
    await world.settle()
    assert await world.servers() == ["v3"], "the servers from before the restore go like any others"


async def test_restored_in_the_middle_of_a_rollout_the_candidate_begins_anew() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    await restored(world)
    status = await world.run(until=lambda status: status.stable is not None)
    assert status.stable is not None
    assert status.stable.name == "v1"
    await world.run(until=serving("v2"))
    await world.settle()
    assert await world.servers() == ["v2"]


async def test_a_gateway_that_does_not_hear_holds_up_the_end_of_the_old_servers() -> None:
    world = await with_stable()
    await offer(world, "v2", Quality(ready_after=2))
    await world.run(until=lambda status: status.phase == "Canary")
    world.gateways[0].deaf = True
    world.qualities["v2"].error = 1.0
    await world.run(until=lambda status: status.phase == "RollingBack")
    await world.settle(ticks=30)
    assert (await world.status()).phase == "RollingBack"
    assert await world.servers() == ["v1", "v2"], "it may still send requests to v2"
    world.gateways[0].deaf = False
    await world.run(until=serving("v1"))
    await world.settle(ticks=3)
    assert await world.servers() == ["v1"]


async def test_gateways_come_and_go() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.kill_gateway()
    await world.start_gateway()
    status = await world.run(until=serving("v2"))
    assert outcomes(status)[-1] == ("v2", "Promoted")


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "an old one put back"])
async def test_gateways_follow_again_when_somebody_took_their_routes_away(deleted: bool) -> None:
    """They take newer routes only: those that are written then must be newer to them."""
    world = await with_stable()
    uid = await offer(world, "v2")
    old = await world.cluster.get(kind="ConfigMap", namespace="ml", name="router-routes")
    assert old is not None
    await world.run(until=lambda status: status.phase == "Canary")
    await world.settle(ticks=3)
    if deleted:
        world.cluster.remove(kind="ConfigMap", namespace="ml", name="router-routes")
    else:
        world.cluster.edit(
            kind="ConfigMap",
            namespace="ml",
            name="router-routes",
            change=lambda found: void(found.__setitem__("data", old["data"])),
        )
    world.annotate(reject=uid)
    await world.run(until=serving("v1"))
    await world.settle()
    assert await world.servers() == ["v1"]
    routes = [[each.name for each in found.routes.variants.values()] for found in world.gateways if found.routes]
    assert routes == [["v1"], ["v1"]]


@pytest.mark.parametrize(("bad", "goes_on"), [(0.3, False), (0.0, True)], ids=["badly", "well"])
async def test_where_all_testers_were_given_the_candidate_one_that_answers_badly_waits_for_a_person(
    bad: float, goes_on: bool
) -> None:
    """There is nothing to compare with: they may ask for what no version can answer."""
    testers = {"name": "testers", "match": {"header": {"x-team": "search"}}, "minSamples": 20}
    world = await with_stable(shadow=None, steps=[testers])
    world.testers_per_tick = 5
    uid = await offer(world, "v2", Quality(bad=bad))
    await world.run(until=lambda status: status.phase == "Canary")
    await world.settle(ticks=60)
    status = await world.status()
    assert (status.phase != "Canary") == goes_on
    if not goes_on:
        assert outcomes(status) == [("v1", "Promoted")]
        assert status.next is not None
        assert (status.next.until, [each.action for each in status.next.release]) == (None, ["Reject"])
        assert any("stable has answered none of these requests" in (each.reason or "") for each in status.analysis)
        world.annotate(reject=uid)
        assert outcomes(await world.run(until=serving("v1")))[-1] == ("v2", "Rejected")


async def test_a_guard_counts_from_the_promotion_on_though_its_routes_were_written_again() -> None:
    """Gateways ask each held-out prompt once from then on: what they counted first would be lost."""
    world = await with_stable()
    await offer(world, "v2")
    status = await world.run(until=lambda status: status.phase == "Promoting")
    assert status.step is not None
    world.gateways[0].deaf = True
    await world.settle(ticks=3)
    world.cluster.remove(kind="ConfigMap", namespace="ml", name="router-routes")
    await world.settle(ticks=3)
    world.gateways[0].deaf = False
    guard = await world.run(until=lambda status: status.phase == "Guarding")
    assert guard.step is not None
    assert guard.step.since_epoch == status.step.since_epoch


async def test_a_second_look_writes_nothing() -> None:
    world = await with_stable()
    await offer(world, "v2")
    for phase in ("Shadowing", "Canary", "Guarding"):
        await world.run(until=lambda status, phase=phase: status.phase == phase)  # type: ignore[misc]
        await world.reconcile()
        before = world.cluster.snapshot()
        await world.reconcile()
        assert world.cluster.snapshot() == before


async def test_a_shadow_that_drops_requests_is_not_written_at_every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await with_stable(shadow={"percent": 100, "minSamples": 10_000, "maxDurationSeconds": 600})
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Shadowing")
    process = type(world.gateways[0])
    told = process.observations

    def under_load(gateway: Any) -> Any:
        said = told(gateway)
        dropped = [each.model_copy(update={"dropped": each.sampled - 1}) for each in said.shadow]
        return said.model_copy(update={"shadow": dropped})

    monkeypatch.setattr(process, "observations", under_load)
    await world.settle(ticks=10)
    assert "dropped under load" in ((await world.status()).message or "")
    written = set()
    for _ in range(20):
        await world.settle(ticks=1)
        written.add((await world.endpoint()).metadata.resource_version)
    assert len(written) <= 5, "what flows is written every five seconds"


async def test_old_records_go_and_the_one_to_go_back_to_stays() -> None:
    world = EndpointWorld()
    manifest = endpoint_manifest(shadow=None, steps=[], guard={"durationSeconds": 0})
    manifest["spec"]["revisionHistoryLimit"] = 1
    await world.create(manifest)
    for number in range(1, 6):
        await world.create(version_manifest(f"v{number}", baseline=str(number - 1)))
        await world.run(until=serving(f"v{number}"))
    await world.settle()
    left = [each["metadata"]["name"] for each in await world.cluster.list(kind="ModelVersion", namespace="ml")]
    assert left == ["v3", "v4", "v5"], "v5 serves, v4 is what a rollback goes back to, v3 is the history"


async def test_an_approval_is_no_licence_to_get_worse() -> None:
    world = await with_stable(approval="Manual")
    uid = await offer(world, "v2")
    world.annotate(approve=uid, requested_by="ann")
    await world.run(until=lambda status: status.phase == "Guarding")
    world.qualities["v2"].error = 1.0
    status = await world.run(until=serving("v1"))
    assert outcomes(status)[-1] == ("v2", "RolledBack")


async def test_an_approval_from_before_does_not_accept_a_regression() -> None:
    world = await with_stable(onRegression="Pause")
    uid = await offer(world, "v2")
    world.annotate(approve=uid, requested_by="ann")
    await world.run(until=lambda status: status.phase == "Canary")
    world.qualities["v2"].bad = 0.8
    status = await world.run(until=lambda status: status.phase == "Paused")
    assert AGAIN in (status.message or "")
    status = await world.settle(ticks=30)
    assert status.phase == "Paused"
    world.annotate(approve=None)
    await world.settle(ticks=2)
    world.annotate(approve=uid, requested_by="ann")
    status = await world.settle(ticks=3)
    assert status.step is not None
    assert status.step.name == "half", "somebody has seen it, and lets it go on"


async def test_a_regression_accepted_under_guard_ends_the_pause() -> None:
    world = await with_stable(onRegression="Pause")
    uid = await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Guarding")
    world.qualities["v2"].bad = 0.9
    await world.run(until=lambda status: status.phase == "Paused")
    world.annotate(approve=uid, requested_by="ann")
    status = await world.settle(ticks=3)
    assert status.phase == "Guarding"
    await world.run(until=serving("v2"))


async def test_what_was_rolled_back_is_not_what_one_goes_back_to() -> None:
    world = await with_stable()
    v2 = await offer(world, "v2")
    await world.run(until=serving("v2"))
    world.annotate(rollback=v2, requested_by="ann")
    status = await world.run(until=serving("v1"))
    assert status.stable is not None
    world.annotate(rollback=status.stable.uid, pause="true")
    status = await world.settle(ticks=10)
    assert status.stable is not None
    assert status.stable.name == "v1"
    assert "there is no other version that was stable before" in (status.message or "")
    world.annotate(pause=None)
    await world.settle(ticks=3)
    await offer(world, "v3")
    await world.run(until=serving("v3"))


async def test_an_endpoint_without_a_gateway_is_not_ready_and_does_not_say_that_it_serves() -> None:
    world = await with_stable()
    world.gateways_ready = False
    await world.settle()
    status = await world.status()
    conditions = {each.type: (each.status, each.reason) for each in status.conditions}
    assert conditions["Ready"] == ("False", "GatewayNotReady")
    assert conditions["Available"] == ("False", "GatewayNotReady")
    assert status.message == "no request is answered now: no gateway is ready"
    world.gateways_ready = True
    await world.settle()
    assert (await world.status()).message == "v1 serves all requests"


async def test_a_gateway_that_is_not_heard_of_is_named_while_a_rollout_waits_for_it() -> None:
    """As where a NetworkPolicy keeps its reports away."""
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.gateways[0].unheard = True
    name = world.gateways[0].name
    await world.run(until=lambda status: f"nothing is heard from {name}: it must reach" in (status.message or ""))
    world.gateways[0].unheard = False
    await world.run(until=lambda status: "nothing is heard" not in (status.message or ""), ticks=5)


async def test_why_no_gateway_is_ready_is_said() -> None:
    world = await with_stable()
    world.gateways_ready = False
    refused = {
        "type": "ReplicaFailure",
        "status": "True",
        "message": 'pods "router-gateway" is forbidden: exceeded quota',
    }
    world.cluster.edit(
        kind="Deployment",
        namespace="ml",
        name="router-gateway",
        change=lambda found: found["status"].update(readyReplicas=0, conditions=[refused]),
    )
    await world.reconcile()
    (available,) = [each for each in (await world.status()).conditions if each.type == "Available"]
    assert (available.status, available.reason) == ("False", "GatewayNotReady")
    assert available.message == 'no gateway is ready: pods "router-gateway" is forbidden: exceeded quota'


async def test_an_upgrade_under_guard_leaves_it_its_measure() -> None:
    """What the old operator kept cannot be read, and no gateway has reported to the new one at its first look."""
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Guarding")

    def older(found: Manifest) -> None:
        found["data"] = {ANALYSIS_KEY: json.dumps({**json.loads(found["data"][ANALYSIS_KEY]), "version": 1})}

    world.cluster.edit(kind="ConfigMap", namespace="ml", name="router-analysis", change=older)
    world.cluster.edit(
        kind="ModelEndpoint", namespace="ml", name="router", change=lambda found: found["status"].pop("next")
    )
    world.restart_operator()
    await world.reconcile()
    await world.settle(ticks=3)
    world.qualities["v2"].error = 0.5
    status = await world.run(until=lambda status: status.phase in ("RollingBack", "Idle"))
    assert status.phase == "RollingBack", status.analysis


async def test_no_event_says_that_a_first_version_serves_which_no_gateway_answers_for() -> None:
    world = EndpointWorld()
    world.gateways_ready = False
    await world.create(endpoint_manifest())
    await world.create(version_manifest("v1"))
    await world.settle()
    assert (await world.status()).stable is not None
    serving = [each.message for each in world.cluster.events if each.reason == "Serving"]
    assert serving == [], "its message would be that no request is answered"
    assert any(each.reason == "GatewayNotReady" for each in world.cluster.events)
