"""What an autoscaler sees of an endpoint, and what follows from the number that it writes."""

from __future__ import annotations

from tests.simulation.endpoint_world import EndpointWorld, endpoint_manifest
from tests.unit.endpoint.test_rollout import offer, serving, with_stable

STEPS = {"steps": [{"name": "half", "percent": 50, "minSamples": 10**6}]}


async def versions_selected(world: EndpointWorld) -> list[str]:
    """The versions of the pods whose load is measured."""
    status = await world.status()
    labels = dict(each.split("=") for each in (status.selector or "").split(","))
    pods = await world.cluster.list(kind="Pod", namespace="ml", labels=labels)
    return [each["metadata"]["labels"]["finetune.dev/version"] for each in pods]


async def sizes(world: EndpointWorld) -> dict[str, int]:
    """Version -> pods that its Deployment is to have."""
    labels = {"finetune.dev/component": "server"}
    found = await world.cluster.list(kind="Deployment", namespace="ml", labels=labels)
    return {each["metadata"]["labels"]["finetune.dev/version"]: each["spec"]["replicas"] for each in found}


def scale(world: EndpointWorld, replicas: int) -> None:
    """kubectl scale, or an autoscaler."""
    world.change_spec(serving={"runtime": "Transformers", "replicas": replicas})


async def test_without_a_version_there_is_nothing_to_measure() -> None:
    world = EndpointWorld()
    await world.create(endpoint_manifest())
    status = await world.settle()
    assert (status.replicas, status.selector) == (0, None)


async def test_the_stable_versions_pods_are_counted_and_selected_and_all_versions_follow() -> None:
    world = await with_stable(**STEPS)
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    assert ((await world.status()).replicas, await sizes(world)) == (1, {"v1": 1, "v2": 1})
    scale(world, 3)
    status = await world.settle(ticks=3)
    assert (status.phase, status.replicas) == ("Canary", 3)
    assert await sizes(world) == {"v1": 3, "v2": 3}, "a promotion never moves all requests to fewer servers"
    assert await versions_selected(world) == ["v1"]


async def test_after_a_promotion_it_is_the_new_versions_pods() -> None:
    world = await with_stable(guard={"durationSeconds": 0})
    await offer(world, "v2")
    await world.run(until=serving("v2"))
    assert await versions_selected(world) == ["v2"]


async def test_an_endpoint_of_an_older_operator_gets_it_at_the_next_look() -> None:
    world = await with_stable()

    def forget(found: dict[str, dict[str, object]]) -> None:
        del found["status"]["replicas"], found["status"]["selector"]

    world.cluster.edit(kind="ModelEndpoint", namespace="ml", name="router", change=forget)
    assert (await world.status()).selector is None
    status = await world.settle()
    assert status.replicas == 1
    assert await versions_selected(world) == ["v1"]
