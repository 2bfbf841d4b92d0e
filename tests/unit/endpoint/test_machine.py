"""Whatever happens to an endpoint, in whatever order: what serves goes on to serve, and the rollout comes to an end."""

from __future__ import annotations

import asyncio
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.simulation.comparison_jobs import Ends
from tests.simulation.endpoint_world import EndpointWorld, Quality, endpoint_manifest, version_manifest

SHORT = {
    "shadow": {"percent": 100, "minSamples": 10, "maxDurationSeconds": 30},
    "steps": [{"name": "ten", "percent": 10, "minSamples": 5}, {"name": "half", "percent": 50, "minSamples": 10}],
    "guard": {"durationSeconds": 10},
    "progressDeadlineSeconds": 20,
}
EVENTS = (
    "tick",
    "version",
    "bad version",
    "dead version",
    "version of another baseline",
    "version that compares badly",
    "version that cannot be compared",
    "version withdrawn",
    "breaks",
    "heals",
    "approve",
    "reject",
    "rollback",
    "pause",
    "resume",
    "pin",
    "unpin",
    "gateway dies",
    "gateway comes",
    "gateway deaf",
    "gateway hears",
    "operator restarts",
    "status lost",
)


THOROUGH = bool(os.environ.get("FINETUNE_ALL_TESTS"))
"""Hundreds of other stories, instead of the same few."""
RESTS = 10
"""Looks in a row at which nothing is under way: what waits would have begun."""
OTHERS: dict[str, Ends] = {
    "version of another baseline": "Pass",
    "version that compares badly": "Fail",
    "version that cannot be compared": "Crash",
}


async def happen(world: EndpointWorld, event: str, number: int) -> None:
    """One event; those that do not fit are nothing."""
    status = await world.status()
    under_way = status.candidate or status.stable
    name = f"v{number}"
    baseline = status.stable.digest[7] if status.stable else "0"
    if event in ("version", "bad version", "dead version"):
        quality = {"version": Quality(), "bad version": Quality(error=0.7), "dead version": Quality(ready_after=None)}
        manifest = version_manifest(name, baseline=baseline, letter="23456789abcdef"[number % 14])
        await world.create(manifest, quality=quality[event])
    elif event in OTHERS:
        world.comparisons.ends[name] = [OTHERS[event]]
        letter = "23456789abcdef"[number % 14]
        await world.create(version_manifest(name, baseline="1", letter=letter, planned=True))
    elif event == "version withdrawn" and under_way:
        world.cluster.remove(kind="ModelVersion", namespace="ml", name=under_way.name)
    elif event == "breaks" and under_way:
        world.qualities[under_way.name].error = 1.0
    elif event == "heals" and under_way:
        world.qualities[under_way.name] = Quality()
    elif event in ("approve", "reject", "rollback") and under_way:
        world.annotate(**{event: under_way.uid, "requested_by": "ann"})
    elif event in ("pause", "resume"):
        world.annotate(pause="true" if event == "pause" else None)
    elif event in ("pin", "unpin"):
        world.change_spec(version="v1" if event == "pin" else "")
    elif event == "gateway dies" and len(world.gateways) > 1:
        world.kill_gateway()
    elif event == "gateway comes" and 0 < len(world.gateways) < 4:
        await world.start_gateway()
    elif event in ("gateway deaf", "gateway hears"):
        for gateway in world.gateways[:1]:
            gateway.deaf = event == "gateway deaf"
    elif event == "operator restarts":
        world.restart_operator()
    elif event == "status lost":
        world.cluster.edit(
            kind="ModelEndpoint", namespace="ml", name="router", change=lambda found: found.__setitem__("status", {})
        )
    for _ in range(3):
        await world.tick()
        await world.reconcile()


async def play(events: list[str], *, policy: dict[str, str]) -> None:
    world = EndpointWorld(requests_per_tick=10, seed=5)
    await world.create(endpoint_manifest(**SHORT, **policy))
    await world.create(version_manifest("v1", planned=True))
    await world.run(until=lambda status: status.phase == "Idle")
    for number, event in enumerate(events, start=2):
        await happen(world, event, number)
        routes = await world.routes()
        assert routes is not None, "production without a route"
        status = await world.status()
        assert status.stable is not None, "production without a version"
        stables = [status.stable.uid, *([status.previous.uid] if status.previous else [])]
        assert len(set(stables)) == len(stables)
    # Left alone by everybody, with people's wishes withdrawn, everything comes to rest.
    world.annotate(pause=None, reject=None, rollback=None, approve=None)
    for gateway in world.gateways:
        gateway.deaf = False
    for quality in world.qualities.values():
        quality.error = 0.0
    status = await world.status()
    rests = 0
    for _ in range(4):
        world.annotate(approve=None)
        await world.settle(ticks=2)
        if status.candidate is not None:
            world.annotate(approve=status.candidate.uid, requested_by="ann")
        elif status.step is not None and status.step.held and status.stable is not None:
            world.annotate(approve=status.stable.uid, requested_by="ann")
        for _ in range(60):
            status = await world.settle(ticks=1)
            rests = rests + 1 if await at_rest(world) else 0
            if rests == RESTS:
                break
        if status.phase == "Idle":
            break
    assert status.phase == "Idle", status.to_dict()
    assert await at_rest(world)


async def at_rest(world: EndpointWorld) -> bool:
    """Nothing is tried or guarded, and nothing runs but what serves."""
    status = await world.status()
    return status.phase == "Idle" and status.stable is not None and await world.servers() == [status.stable.name]


@settings(
    max_examples=300 if THOROUGH else 15,
    deadline=None,
    derandomize=not THOROUGH,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    events=st.lists(st.sampled_from(EVENTS), min_size=1, max_size=14),
    policy=st.sampled_from(
        [
            {},
            {"approval": "Manual"},
            {"onRegression": "Pause"},
            {"onInconclusive": "Reject"},
            {"onInconclusive": "Proceed"},
        ]
    ),
)
def test_production_is_never_without_a_version(events: list[str], policy: dict[str, str]) -> None:
    asyncio.run(play(events, policy=policy))
