"""Objects of our kinds in every phase, with what the operator writes into them in the simulated worlds.

Of a status, what only the operator reads (its plan, the results of stages) and what flows are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.conformance.objects import evaluate_result, job_manifest
from tests.simulation.endpoint_world import EndpointWorld, Quality, endpoint_manifest, version_manifest
from tests.simulation.memory_cluster import MemoryCluster
from tests.simulation.script import BAD_DATA, Script, Wait
from tests.simulation.world import World, void

from finetune_operator.core.ports import Kind, Manifest

Recordings = dict[str, Manifest]
"""By phase; of a second one of a phase there are words in brackets behind it."""
BY = "ann"
"""Who asks for things."""
_FOLLOWED = {phase: phase for phase in ("Shadowing", "Canary", "Promoting", "Guarding", "Paused")} | {
    "AwaitingApproval": "AwaitingApproval",
    "AwaitingApproval (held)": "Idle (held)",
    "Queued (for the endpoint)": "Idle",
    "RolledBack": "Idle (rolled back)",
    "Superseded": "Idle (superseded)",
}
"""Recordings of jobs by those of the endpoint that they follow."""


async def recorded() -> dict[str, Recordings]:
    """By kind."""
    endpoints = {**await _a_rollout(), **await _other_rollouts()}
    return {
        "FineTuneJob": {
            **await _jobs(),
            **{name: await _following(endpoints[at]) for name, at in _FOLLOWED.items()},
            "RollingBack": await _following(_before_its_outcome(endpoints["Guarding"])),
        },
        "ModelVersion": {"": await _version()},
        "ModelEndpoint": endpoints,
    }


# -- endpoints --------------------------------------------------------------------------------------------------------


async def _a_rollout() -> Recordings:
    """From nothing to a version that is approved, promoted and rolled back."""
    world = EndpointWorld()
    found: Recordings = {}

    async def record(name: str) -> None:
        await world.run(until=lambda status: status.phase == name)
        found[name] = await _taken(world.cluster, "ModelEndpoint")

    await world.create(endpoint_manifest(approval="Manual"))
    await record("Empty")
    await world.create(version_manifest("v1"))
    await record("Idle")
    uid = await _offered(world, "v2")
    await record("Shadowing")
    await record("Canary")
    world.annotate(pause="true", requested_by=BY)
    await record("Paused")
    world.annotate(pause=None, requested_by=None)
    await record("AwaitingApproval")
    world.annotate(approve=uid, requested_by=BY)
    await record("Promoting")
    await record("Guarding")
    world.annotate(approve=None, rollback=uid, requested_by=BY)
    await record("RollingBack")
    world.annotate(rollback=None, requested_by=None)
    await world.run(until=lambda status: status.phase == "Idle")
    found["Idle (rolled back)"] = await _taken(world.cluster, "ModelEndpoint")
    return found


async def _other_rollouts() -> Recordings:
    found: Recordings = {}
    world = await _serving_v1(approval="Manual", onRegression="Pause")
    uid = await _offered(world, "v2")
    await world.run(until=lambda status: status.step is not None and status.step.name == "half")
    world.annotate(approve=uid, requested_by=BY)
    await world.settle(ticks=2)
    found["Canary (approved)"] = await _taken(world.cluster, "ModelEndpoint")
    world.qualities["v2"].bad = 0.9
    await world.run(until=lambda status: status.phase == "Paused")
    found["Paused (regression, approved before)"] = await _taken(world.cluster, "ModelEndpoint")
    world = await _serving_v1(onRegression="Pause")
    await _offered(world, "v2", quality=Quality(error=0.3))
    await world.run(until=lambda status: status.phase == "Paused")
    found["Paused (regression)"] = await _taken(world.cluster, "ModelEndpoint")
    world = await _serving_v1()
    await _offered(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    await _offered(world, "v3")
    await world.run(until=lambda status: status.phase == "Idle")
    found["Idle (superseded)"] = await _taken(world.cluster, "ModelEndpoint")
    world = await _serving_v1()
    held = {"verdict": "Inconclusive", "accepted": False, "held": True}
    await _offered(world, "v2", **held)
    await world.settle(ticks=3)
    found["Idle (held)"] = await _taken(world.cluster, "ModelEndpoint")
    await _offered(world, "v3", **held)
    await world.settle(ticks=3)
    found["Idle (two held)"] = await _taken(world.cluster, "ModelEndpoint")
    world = await _serving_v1()
    world.change_spec(version="v9")
    await world.settle(ticks=3)
    found["Idle (pinned to what is not there)"] = await _taken(world.cluster, "ModelEndpoint")
    return found


async def _serving_v1(**rollout: Any) -> EndpointWorld:
    world = EndpointWorld()
    await world.create(endpoint_manifest(**rollout))
    await world.create(version_manifest("v1"))
    await world.run(until=lambda status: status.phase == "Idle")
    return world


async def _offered(world: EndpointWorld, name: str, *, quality: Quality | None = None, **more: Any) -> str:
    """A newer version that was compared with v1; its UID."""
    made = await world.create(version_manifest(name, baseline="1", **more), quality=quality)
    return str(made["metadata"]["uid"])


# -- jobs -------------------------------------------------------------------------------------------------------------


async def _jobs() -> Recordings:
    found: Recordings = {}

    async def record(world: World, *phases: str, **spec: Any) -> None:
        key = await world.submit(job_manifest(**spec))
        for phase in phases:
            world.change_spec(key, **({"suspend": True} if phase == "Suspended" else {}))
            await world.run(key, until=lambda status, phase=phase: status.phase == phase)  # type: ignore[misc] # a default
            found[phase] = await _taken(world.cluster, "FineTuneJob")

    await record(World(), "Pending", endpointRef={"name": "not-applied-yet"})
    await record(World(), "Preparing", "Training", "Evaluating", "Succeeded")
    await record(World(script=Script(fates={("Train", 1): Wait(how="Unschedulable")})), "Queued", "Suspended")
    await record(World(script=Script(succeed={"Evaluate": evaluate_result(verdict="Fail")})), "Rejected")
    await record(World(script=Script(fates={("Prepare", 1): BAD_DATA})), "Failed")
    return found


async def _following(endpoint: Manifest) -> Manifest:
    """A job whose version is the endpoint's v2, if it has one."""
    world = World()
    await world.cluster.create(manifest=endpoint_manifest())
    key = await world.submit(job_manifest(name="v2", endpointRef={"name": "router"}))
    version = (await world.run(key, until=lambda status: status.model_version)).model_version
    assert version is not None
    text = json.dumps(endpoint["status"])
    for uid in _uids(endpoint["status"], name="v2"):
        text = text.replace(uid, version.uid)
    world.cluster.edit(
        kind="ModelEndpoint",
        namespace="ml",
        name="router",
        change=lambda found: void(found.update(status=json.loads(text))),
    )
    for _ in range(2):
        await world.tick()
        await world.reconcile(key)
    return await _taken(world.cluster, "FineTuneJob")


def _before_its_outcome(guarding: Manifest) -> Manifest:
    """No operator writes that a version is left without what became of it; a phase of jobs it is all the same."""
    return {**guarding, "status": {**guarding["status"], "phase": "RollingBack"}}


def _uids(part: Any, *, name: str) -> set[str]:
    """Of the versions of a name, wherever they are."""
    if isinstance(part, Mapping):
        here = {str(part["uid"])} if part.get("name") == name and "uid" in part else set()
        return here.union(*(_uids(each, name=name) for each in part.values()))
    return set().union(*(_uids(each, name=name) for each in part)) if isinstance(part, list) else set()


async def _version() -> Manifest:
    world = World()
    key = await world.submit(job_manifest())
    await world.run(key, until=lambda status: status.phase == "Succeeded")
    return await _taken(world.cluster, "ModelVersion")


async def _taken(cluster: MemoryCluster, kind: Kind) -> Manifest:
    """The only object of a kind, as it is now."""
    (found,) = await cluster.list(kind=kind, namespace="ml")
    status = found.get("status", {})
    for field in ("plan", "trainerStatus", "checkpoint", "analysis"):
        status.pop(field, None)
    for stage in status.get("stages", ()):
        stage.pop("result", None)
    return found
