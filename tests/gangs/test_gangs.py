"""Two pods train under each strategy, on real nodes, through what docs/restarts.md says may end an attempt.

Under one strategy the weights are those of an unbroken run bit for bit: a step is a function of the orders and its
number, and two numbers have one sum in either order. Another strategy sums other parts first, and rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from tests.cluster.jobs import Workspace, condition, dumped
from tests.cluster.operator_install import InstalledOperator
from tests.gangs.gang import STEPS, Gang, Learned, restarts
from tests.gangs.interruptions import (
    EVICTED,
    HUNG,
    JOB_DELETED,
    OUT_OF_MEMORY,
    POD_DELETED,
    RANK_KILLED,
    interrupt,
    lose_node,
    lose_results,
    suspend,
)

pytestmark = pytest.mark.timeout(3000)
FIRST, SECOND = ("FSDP2", "DeepSpeedZeRO2"), ("DDP", "DeepSpeedZeRO3")
SAME = 1e-5
"""Of a loss under another strategy."""


@dataclass(kw_only=True)
class Unbroken:
    """Runs that nothing interrupts, one a strategy: they train while the others wait."""

    workspace: Workspace
    gangs: dict[str, Gang] = field(default_factory=dict)

    def start(self, strategies: Sequence[str]) -> None:
        for strategy in strategies:
            if strategy not in self.gangs:
                self.gangs[strategy] = started(self.workspace, "unbroken", strategy)

    def learned(self, strategy: str) -> Learned:
        self.start([strategy])
        gang = self.gangs[strategy]
        if gang.learned is None:
            gang.trained()
        assert gang.learned is not None
        return gang.learned


@pytest.fixture(scope="module")
def unbroken(shared: Workspace) -> Unbroken:
    return Unbroken(workspace=shared)


def started(workspace: Workspace, name: str, strategy: str, **changes: object) -> Gang:
    gang = Gang(workspace=workspace, name=f"{name}-{strategy.lower()}", strategy=strategy)
    gang.start(**changes)
    return gang


@pytest.mark.parametrize("strategies", [FIRST, SECOND], ids="-".join)
def test_evicted_killed_without_its_job_suspended_and_without_its_result(
    strategies: Sequence[str],
    unbroken: Unbroken,
    shared: Workspace,
    operator: InstalledOperator,
    record_property: pytest.RecordProperty,
) -> None:
    gangs = [started(shared, "broken", strategy) for strategy in strategies]
    unbroken.start(strategies)
    lost = {each.name: interrupt(gangs, each) for each in (EVICTED, RANK_KILLED, JOB_DELETED)}
    suspend(gangs)
    lost["result lost"] = lose_results(gangs, operator=operator)
    record_property("steps lost", lost)
    for gang in gangs:
        assert_same(gang, unbroken, preemptions=3, failures=1)


def test_a_pod_deleted_out_of_memory_hung_and_without_its_node(
    unbroken: Unbroken, shared: Workspace, record_property: pytest.RecordProperty
) -> None:
    gangs = [started(shared, "broken-more", strategy) for strategy in FIRST]
    lost = {each.name: interrupt(gangs, each) for each in (POD_DELETED, OUT_OF_MEMORY, HUNG)}
    lost["node lost"] = lose_node(gangs, name="node2")
    record_property("steps lost", lost)
    for gang in gangs:
        assert_same(gang, unbroken, preemptions=2, failures=2)


def assert_same(gang: Gang, unbroken: Unbroken, **counts: int) -> None:
    """Nothing shows in what it learned."""
    job, expected = gang.trained(), unbroken.learned(gang.strategy)
    assert {name: restarts(job)[name] for name in counts} == counts, dumped(job)
    assert expected.steps == STEPS
    assert gang.learned == expected, "the same order of data, the same losses, the same weights"


def test_another_strategy_learns_the_same(unbroken: Unbroken, record_property: pytest.RecordProperty) -> None:
    found = {strategy: unbroken.learned(strategy) for strategy in (*FIRST, *SECOND)}
    one = found["DDP"]
    for strategy, other in found.items():
        record_property(strategy, [other.weights[:12], other.validation])
        assert (other.steps, other.tokens) == (one.steps, one.tokens)
        assert other.validation == pytest.approx(one.validation, rel=SAME), strategy


def test_what_diverges_ends_with_its_step(shared: Workspace) -> None:
    gangs = [
        started(shared, "diverging", strategy, training={"learningRate": 10, "weightDecay": 1}) for strategy in FIRST
    ]
    for gang in gangs:
        job = shared.finished(gang.name)
        stalled = condition(job, "Stalled")
        assert stalled["reason"] == "LossNotFinite", dumped(job)
        assert not restarts(job), "trying again cannot help"
