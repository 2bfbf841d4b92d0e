"""Two operators over the same objects: each object is worked on by one of them, and the other says so once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry
from tests.conformance.objects import START, job_manifest
from tests.simulation.crashing import CrashingCluster, KilledError
from tests.simulation.endpoint_world import CONFIG, endpoint_manifest, version_manifest
from tests.simulation.memory_cluster import MemoryCluster
from tests.simulation.world import DOOR, Reports, claim

from finetune_operator.core.controller import Surroundings
from finetune_operator.core.ports import Cluster, Key, Manifest
from finetune_operator.kube.inboxes import ObservationInbox
from finetune_operator.metrics import Metrics
from finetune_operator.reconcile import Reconciler

JOB = Key(kind="FineTuneJob", namespace="ml", name="router")
ENDPOINT = Key(kind="ModelEndpoint", namespace="ml", name="router")
BOTH = pytest.mark.parametrize("key", [JOB, ENDPOINT], ids=lambda key: key.kind)


class Operator(CrashingCluster):
    """One operator with its own memory. `writes` are those that it tried."""

    def __init__(self, instance: str, *, cluster: Cluster, excluded: tuple[str, ...] = (), kill_at: int = 0) -> None:
        super().__init__(inner=cluster, kill_at=kill_at)
        self.metrics = Metrics(registry=CollectorRegistry())
        self.before_write: Callable[[], Awaitable[object]] | None = None
        self.look = Reconciler(
            metrics=self.metrics,
            around=Surroundings(
                cluster=self,
                config=CONFIG.model_copy(update={"instance": instance, "excluded_namespaces": excluded}),
                progress=Reports(listening_since=START),
                clock=lambda: START,
                door=lambda: DOOR,
                observations=ObservationInbox(enqueue=lambda key: None, clock=lambda: START),
            ),
        ).reconcile

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        """Write; what comes in between comes first."""
        if self.before_write is not None:
            between, self.before_write = self.before_write, None
            await between()
        return await super().replace_status(manifest=manifest)

    def foreign(self, key: Key) -> float | None:
        return self.metrics.registry.get_sample_value("finetune_foreign_instance_objects", {"kind": key.kind})

    @property
    def children_made(self) -> list[str]:
        return [each for each in self.writes if not each.startswith("status")]


async def a_cluster() -> MemoryCluster:
    cluster = MemoryCluster(clock=lambda: START)
    for manifest in (
        claim("models", access_mode="ReadWriteMany"),
        job_manifest(),
        endpoint_manifest(),
        version_manifest("v1"),
    ):
        await cluster.create(manifest=manifest)
    return cluster


async def instance(cluster: MemoryCluster, key: Key) -> object:
    found = await cluster.get(kind=key.kind, namespace=key.namespace, name=key.name)
    assert found is not None
    return found["status"].get("instance")


def told(cluster: MemoryCluster) -> list[str]:
    return [each.message for each in cluster.events if each.reason == "OtherInstance"]


def hand_over(cluster: MemoryCluster, key: Key, *, to: str | None) -> None:
    cluster.edit(kind=key.kind, namespace="ml", name=key.name, change=lambda found: found["status"].update(instance=to))


@BOTH
async def test_one_works_on_it_and_the_other_says_so_once(key: Key) -> None:
    cluster = await a_cluster()
    ours, other = Operator("blue", cluster=cluster), Operator("green", cluster=cluster)
    await ours.look(key)
    assert ours.children_made
    assert await instance(cluster, key) == "blue"
    for _ in range(3):
        assert await other.look(key) is None
    assert other.writes == []
    (message,) = told(cluster)
    assert "'blue'" in message
    assert "'green'" in message
    assert (other.foreign(key), ours.foreign(key)) == (1, 0)
    cluster.remove(kind=key.kind, namespace="ml", name=key.name)
    await other.look(key)
    assert other.foreign(key) == 0


@BOTH
async def test_of_two_that_look_at_once_only_one_makes_children(key: Key) -> None:
    cluster = await a_cluster()
    first, late = Operator("blue", cluster=cluster), Operator("green", cluster=cluster)
    late.before_write = lambda: first.look(key)
    await late.look(key)
    assert first.children_made
    assert late.children_made == []
    assert await instance(cluster, key) == "blue"
    assert len(told(cluster)) == 1


@BOTH
async def test_an_object_of_nobody_is_claimed_before_anything_is_made(key: Key) -> None:
    """As an operator without instances leaves it that dies before its first child."""
    whole = Operator("", cluster=await a_cluster())
    await whole.look(key)
    cluster = await a_cluster()
    with pytest.raises(KilledError):
        await Operator("", cluster=cluster, kill_at=whole.writes.index(whole.children_made[0]) + 1).look(key)
    heir = Operator("blue", cluster=cluster)
    await heir.look(key)
    assert heir.writes[0].startswith("status")
    assert heir.children_made[0].split()[:2] == whole.children_made[0].split()[:2]
    assert await instance(cluster, key) == "blue"


@BOTH
async def test_an_object_can_be_handed_over(key: Key) -> None:
    cluster = await a_cluster()
    before, after = Operator("blue", cluster=cluster), Operator("green", cluster=cluster)
    await before.look(key)
    await after.look(key)
    hand_over(cluster, key, to="green")
    writes = len(before.writes)
    await after.look(key)
    await before.look(key)
    assert (before.foreign(key), after.foreign(key)) == (1, 0)
    assert len(before.writes) == writes
    phases = "finetune_jobs" if key.kind == "FineTuneJob" else "finetune_endpoints"
    shown = [each for metric in before.metrics.registry.collect() if metric.name == phases for each in metric.samples]
    assert sum(each.value for each in shown) == 0, "it is the other's to show"
    before.metrics.forget_all()
    assert before.foreign(key) == 0


@BOTH
async def test_excluded_namespaces_are_left_alone(key: Key) -> None:
    cluster = await a_cluster()
    operator = Operator("blue", cluster=cluster, excluded=("ml",))
    assert await operator.look(key) is None
    assert operator.writes == []
