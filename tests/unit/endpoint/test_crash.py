"""The operator is killed at every single write of whole rollouts, and each time they end as if nothing had happened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from tests.simulation.comparison_jobs import Ends
from tests.simulation.crashing import ForkingCluster, KilledError
from tests.simulation.endpoint_world import EndpointWorld, Quality, endpoint_manifest, version_manifest

from finetune_api.modelendpoint import ModelEndpointStatus

SHORT = {
    "shadow": {"percent": 100, "minSamples": 20, "maxDurationSeconds": 600},
    "steps": [{"name": "half", "percent": 50, "minSamples": 20}],
    "guard": {"durationSeconds": 6},
}


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happens from the second version on, and how it ends."""

    quality: Callable[[], Quality] = Quality
    at: dict[str, Callable[[EndpointWorld], None]] | None = None
    """What happens once, at the first look in this phase."""
    end: tuple[str, str] = ("v2", "Promoted")
    baseline: str = "1"
    """The letter of the digest that v2 was compared with; v1 has 1."""
    ends: tuple[Ends, ...] = ("Pass",)
    """How attempts to compare it with v1 end."""


def fails(**how: float) -> Callable[[EndpointWorld], None]:
    def change(world: EndpointWorld) -> None:
        for name, value in how.items():
            setattr(world.qualities["v2"], name, value)

    return change


def withdrawn(world: EndpointWorld) -> None:
    world.cluster.remove(kind="ModelVersion", namespace="ml", name="v2")


STORIES = {
    "promoted": Story(),
    "rejected in shadow": Story(quality=lambda: Quality(error=0.6), end=("v2", "Rejected")),
    "rolled back in canary": Story(at={"Canary": fails(error=1.0)}, end=("v2", "RolledBack")),
    "withdrawn in canary": Story(at={"Canary": withdrawn}, end=("v2", "Rejected")),
    "rolled back in guard": Story(at={"Guarding": fails(error=1.0)}, end=("v2", "RolledBack")),
    "compared again": Story(baseline="7"),
    "compared again, worse at the second attempt": Story(baseline="7", ends=("Crash", "Fail"), end=("v2", "Rejected")),
    "cannot be served": Story(
        quality=lambda: Quality(ready_after=None, exits={"exitCode": 78}), end=("v2", "Rejected")
    ),
}


@pytest.mark.parametrize("name", STORIES)
async def test_killed_at_every_write(name: str) -> None:
    story = STORIES[name]
    world = EndpointWorld(seed=3)
    await world.create(endpoint_manifest(**SHORT))
    await world.create(version_manifest("v1", planned=True))
    await world.run(until=lambda status: status.phase == "Idle")
    cluster = ForkingCluster(inner=world.cluster)

    async def played() -> None:
        await play(story, world=world, cluster=cluster)
        await check_end(story, world=world, again=name == "rolled back in guard")

    await cluster.play(played)
    assert cluster.failures == []
    assert cluster.kills >= 8


async def play(story: Story, *, world: EndpointWorld, cluster: ForkingCluster) -> None:
    """The whole story, with the operator killed at a write."""
    world.restart_operator(cluster=lambda _: cluster)
    world.comparisons.ends["v2"] = list(story.ends)
    await world.create(version_manifest("v2", baseline=story.baseline, planned=True), quality=story.quality())
    pending = dict(story.at or {})

    async def look(step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except KilledError:
            world.restart_operator()
            await world.check()

    def over(status: ModelEndpointStatus) -> bool:
        return status.phase == "Idle" and status.versions[-1].name == "v2"

    for _ in range(200):
        await look(world.reconcile)
        status = await world.status()
        happening = pending.pop(status.phase or "", None)
        if happening is not None:
            happening(world)
        if over(status):
            for _ in range(6):
                await world.tick()
                await look(world.reconcile)
            return
        await world.tick()
    raise AssertionError(f"not over: {(await world.status()).to_dict()}")


async def check_end(story: Story, *, world: EndpointWorld, again: bool) -> None:
    """As it would have been without a crash. `again`: v2 was promoted first, so it is listed twice."""
    status = await world.status()
    assert (status.versions[-1].name, status.versions[-1].outcome) == story.end
    assert [each.name for each in status.versions].count("v2") == (2 if again else 1)
    serving = "v2" if story.end[1] == "Promoted" else "v1"
    assert await world.servers() == [serving]
    routes = await world.routes()
    assert routes is not None
    assert [variant.name for variant in routes.variants.values()] == [serving]
    assert status.routes is not None
    assert status.routes.epoch == routes.epoch
    assert len(status.comparisons) == (story.baseline != "1")
    assert len(world.comparisons.ran) == (len(story.ends) if status.comparisons else 0)
    left = [name for kind, _, name in world.cluster.snapshot() if kind in ("Job", "ConfigMap") and "compare" in name]
    assert left == []
