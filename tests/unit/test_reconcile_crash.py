"""The operator is killed at every single write of whole runs, and each time they end as if nothing had happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.conformance.objects import evaluate_result, job_manifest
from tests.simulation.crashing import CountingCluster, ForkingCluster, KilledError
from tests.simulation.script import BAD_DATA, CRASH, Disrupt, Hang, Script
from tests.simulation.world import World

from finetune_api.finetunejob import RETRY, TERMINAL_PHASES, FineTuneJobStatus
from finetune_operator.core.ports import Key
from finetune_operator.job.retry import end_of, is_asked


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run with something happening in it."""

    script: Callable[[], Script]
    changes: dict[str, Any] = field(default_factory=dict)
    suspend_at: str = ""
    """The phase in which a user suspends the run, once; it is resumed 40 seconds later."""
    broken_nodes: frozenset[str] = frozenset()
    retried: bool = False
    """A user asks for another try at the first end."""
    quiet_ticks: int = 3
    """How long to look on after the end."""


STORIES = {
    "succeeds": Story(script=Script),
    "gang": Story(script=Script, changes={"compute": {"nodes": 2}}),
    "rejected": Story(script=lambda: Script(succeed={"Evaluate": evaluate_result(verdict="Fail")})),
    "preempted": Story(
        script=lambda: Script(fates={("Train", 1): Disrupt(how="Evicted"), ("Evaluate", 1): Disrupt(how="Deleted")}),
        changes={"compute": {"nodes": 2}},
    ),
    "node lost": Story(script=lambda: Script(fates={("Train", 1): Disrupt(how="NodeLost", ticks=4)})),
    "fails and is tried again": Story(script=lambda: Script(fates={("Prepare", 1): CRASH, ("Train", 1): CRASH})),
    "hangs": Story(script=lambda: Script(fates={("Train", 1): Hang()}), changes={"failurePolicy": {"hangSeconds": 60}}),
    "fails": Story(script=lambda: Script(fates={("Prepare", 1): BAD_DATA})),
    "fails and is retried": Story(
        script=lambda: Script(fates={("Train", 1): CRASH, ("Train", 2): CRASH, ("Train", 3): CRASH}),
        changes={"failurePolicy": {"maxFailures": 1}},
        retried=True,
    ),
    "over time": Story(script=lambda: Script(fates={("Train", 1): Hang()}), changes={"activeDeadlineSeconds": 60}),
    "suspended": Story(
        script=lambda: Script(fates={("Train", 1): Hang()}),
        changes={"failurePolicy": {"hangSeconds": 300}},
        suspend_at="Training",
    ),
    "refused by a node": Story(script=Script, broken_nodes=frozenset({"node1"})),
    "expires": Story(script=Script, changes={"ttlSecondsAfterFinished": 60}, quiet_ticks=14),
}


@dataclass
class Played:
    """A story that has ended."""

    world: World
    key: Key
    killed: bool


def stage(story: Story) -> World:
    """Where a story can be played."""
    world = World(script=story.script())
    world.broken_nodes = set(story.broken_nodes)
    return world


async def play(story: Story, *, world: World, cluster: CountingCluster) -> Played:
    """Play a story to its end and beyond its clean-up. The operator is killed at most once."""
    world.restart_operator(cluster=lambda _: cluster)
    key = await world.submit(job_manifest(**story.changes))
    suspended_at, killed, quiet, asked = None, False, 0, False
    for tick in range(300):
        try:
            await world.reconcile(key)
        except (KilledError, BaseExceptionGroup):
            killed = True
            world.restart_operator()
            await world.reconcile(key)
        status = await world.status(key)
        if story.suspend_at and suspended_at is None and _running(status, phase=story.suspend_at):
            world.change_spec(key, suspend=True)
            suspended_at = tick
        elif suspended_at is not None and tick == suspended_at + 8:
            world.change_spec(key, suspend=False)
        if story.retried and status.phase == "Failed" and not asked:
            world.annotate(key, {RETRY: end_of(await world.job(key))})
            asked = True
        quiet = quiet + 1 if status.phase in TERMINAL_PHASES and not is_asked(await world.job(key)) else 0
        if quiet > story.quiet_ticks:
            return Played(world=world, key=key, killed=killed)
        await world.tick()
    raise AssertionError(f"no end: {(await world.status(key)).to_dict()}")


def _running(status: FineTuneJobStatus, *, phase: str) -> bool:
    return status.phase == phase and status.stages[-1].state == "Running"


async def outcome(played: Played) -> dict[str, Any]:
    """The end of a story, without what may differ: times, UIDs, how long it took."""
    status = (await played.world.status(played.key)).to_dict()
    restarts = status.get("restarts", {})
    children = played.world.snapshot_of_children()
    return {
        "phase": status["phase"],
        "conditions": sorted((each["type"], each["status"], each["reason"]) for each in status["conditions"]),
        "stages": [
            {name: stage.get(name) for name in ("name", "state", "attempt", "child", "result")}
            for stage in status["stages"]
        ],
        "restarts": (restarts.get("preemptions", 0), restarts.get("failures", 0), restarts.get("stepsLost", 0)),
        "evaluation": status.get("evaluation"),
        "version": (status.get("modelVersion") or {}).get("name"),
        "created": played.world.created,
        "left": sorted(children),
    }


@pytest.mark.parametrize("name", STORIES)
async def test_killed_at_every_write(name: str) -> None:
    """Just before it. To the cluster that is the same as just after the write before; the operator keeps nothing."""
    story = STORIES[name]
    world = stage(story)
    undisturbed = await play(story, world=world, cluster=CountingCluster(inner=world.cluster))
    expected = await outcome(undisturbed)
    assert not undisturbed.killed
    world = stage(story)
    # Progress is written as it comes; that many writes of the same kind need not all be tried.
    cluster = ForkingCluster(inner=world.cluster, but_repeats=True)

    async def played() -> None:
        found = await play(story, world=world, cluster=cluster)
        assert found.killed == (cluster.where is not None)
        assert await outcome(found) == expected
        assert max(Counter(found.world.created).values()) == 1

    await cluster.play(played)
    assert cluster.failures == []
    assert cluster.kills >= 3


@pytest.mark.parametrize("name", STORIES)
async def test_a_second_look_writes_nothing(name: str) -> None:
    """Whenever the operator is through with an object, looking again changes nothing."""
    story = STORIES[name]
    world = stage(story)
    cluster = CountingCluster(inner=world.cluster)
    world.restart_operator(cluster=lambda _: cluster)
    key = await world.submit(job_manifest(**story.changes))
    quiet = 0
    while quiet <= story.quiet_ticks:
        await world.reconcile(key)
        quiet += (await world.status(key)).phase in TERMINAL_PHASES
        before = len(cluster.writes)
        snapshot = world.cluster.snapshot()
        await world.reconcile(key)
        assert cluster.writes[before:] == []
        assert world.cluster.snapshot() == snapshot
        await world.tick()
