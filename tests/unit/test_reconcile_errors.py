"""When something stands in the way: what the object says, who is told, and that nobody else suffers."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.objects import job_manifest
from tests.simulation.crashing import CountingCluster
from tests.simulation.world import World

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJobStatus
from finetune_api.panics import PanicError
from finetune_operator.core.ports import (
    AlreadyExistsError,
    Cluster,
    ConflictError,
    InvalidError,
    Key,
    Manifest,
    NotAllowedError,
    UnavailableError,
)
from finetune_operator.job import controller as job_controller
from finetune_operator.job.observed import Observed


class FailingCluster(CountingCluster):
    """Raises `error` for every write of `kind` while it is set."""

    def __init__(self, *, inner: Cluster, kind: str, error: Exception | None) -> None:
        super().__init__(inner=inner)
        self.kind = kind
        self.error = error

    async def create(self, *, manifest: Manifest) -> Manifest:
        """Write, or fail."""
        if self.error is not None and manifest["kind"] == self.kind:
            raise self.error
        return await super().create(manifest=manifest)

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        """Write, or fail."""
        if self.error is not None and self.kind == "status":
            raise self.error
        return await super().replace_status(manifest=manifest)


def failing(world: World, *, kind: str, error: Exception) -> FailingCluster:
    cluster = FailingCluster(inner=world.cluster, kind=kind, error=error)
    world.restart_operator(cluster=lambda _: cluster)
    return cluster


def ready(status: FineTuneJobStatus) -> tuple[str, str]:
    condition = status.condition("Ready")
    assert condition is not None
    return condition.status, condition.reason


def errors(world: World, reason: str) -> float | None:
    return world.metrics.registry.get_sample_value("finetune_reconcile_errors_total", {"reason": reason})


async def test_a_quota_that_is_used_up_is_said_while_it_is_tried_again() -> None:
    """By the queue, which waits longer and longer: an administrator may raise it at any time."""
    world = World()
    quota = 'jobs.batch "router-prepare-1" is forbidden: exceeded quota: small, requested: count/jobs.batch=1'
    cluster = failing(world, kind="Job", error=NotAllowedError(quota))
    key = await world.submit(job_manifest())
    for _ in range(2):
        with pytest.raises(NotAllowedError):
            await world.reconciler.reconcile(key)
    status = await world.status(key)
    assert ready(status) == ("False", "ChildRefused")
    assert quota in (status.message or "")
    writes = len(cluster.writes)
    with pytest.raises(NotAllowedError):
        await world.reconciler.reconcile(key)
    assert [what for what in cluster.writes[writes:] if what.startswith("status")] == [], "said once"
    cluster.error = None
    status = await world.run(key, until=lambda status: status.phase in TERMINAL_PHASES)
    assert status.phase == "Succeeded"


async def test_a_child_that_is_refused_is_held_and_tried_again() -> None:
    world = World()
    cluster = failing(world, kind="Job", error=InvalidError("pods may not use priorityClassName batch"))
    key = await world.submit(job_manifest())
    assert await world.reconcile(key) == 60
    status = await world.status(key)
    assert (status.phase, ready(status)) == ("Pending", ("False", "ChildRefused"))
    assert "priorityClassName" in (status.message or "")
    assert status.condition("Stalled") is not None
    assert [event.type for event in world.cluster.events][-1] == "Warning"
    writes = len(cluster.writes)
    assert await world.reconcile(key) == 60
    assert [what for what in cluster.writes[writes:] if what.startswith("status")] == [], "said once"
    cluster.error = None
    status = await world.run(key, until=lambda status: status.phase in TERMINAL_PHASES)
    assert status.phase == "Succeeded"


async def test_a_name_that_others_have_is_waited_for() -> None:
    world = World()
    await world.cluster.create(
        manifest={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "router-prepare-1", "namespace": "ml"}}
    )
    key = await world.submit(job_manifest())
    with pytest.raises(AlreadyExistsError):
        await world.reconciler.reconcile(key)
    status = await world.status(key)
    assert ready(status) == ("False", "NameTaken")
    assert "ConfigMap router-prepare-1" in (status.message or "")
    world.cluster.remove(kind="ConfigMap", namespace="ml", name="router-prepare-1")
    status = await world.run(key, until=lambda status: status.phase in TERMINAL_PHASES)
    assert status.phase == "Succeeded"


async def test_an_apiserver_that_is_away_changes_nothing() -> None:
    world = World()
    cluster = failing(world, kind="status", error=UnavailableError("no answer"))
    key = await world.submit(job_manifest())
    with pytest.raises(UnavailableError):
        await world.reconciler.reconcile(key)
    assert errors(world, "Unavailable") == 1
    assert world.cluster.events == [], "nothing is told that is not recorded"
    cluster.error = None
    assert (await world.run(key, until=lambda status: status.phase in TERMINAL_PHASES)).phase == "Succeeded"


async def test_a_conflict_is_nobodys_fault() -> None:
    world = World()
    failing(world, kind="status", error=ConflictError("changed"))
    key = await world.submit(job_manifest())
    with pytest.raises(ConflictError):
        await world.reconciler.reconcile(key)
    assert errors(world, "Conflict") == 1


async def test_a_change_by_a_user_meanwhile_is_taken_in() -> None:
    world = World()
    key = await world.submit(job_manifest())

    class Racing(CountingCluster):
        async def replace_status(self, *, manifest: Manifest) -> Manifest:
            if not self.writes:
                world.change_spec(key, ttlSecondsAfterFinished=60)
            return await super().replace_status(manifest=manifest)

    world.restart_operator(cluster=lambda cluster: Racing(inner=cluster))
    await world.reconciler.reconcile(key)
    status = await world.status(key)
    assert (status.phase, status.observed_generation) == ("Preparing", 2)


async def test_a_job_that_is_deleted_meanwhile_is_let_go() -> None:
    world = World()
    key = await world.submit(job_manifest())

    class Racing(CountingCluster):
        async def replace_status(self, *, manifest: Manifest) -> Manifest:
            world.cluster.remove(kind="FineTuneJob", namespace="ml", name="router")
            return await super().replace_status(manifest=manifest)

    world.restart_operator(cluster=lambda cluster: Racing(inner=cluster))
    assert await world.reconciler.reconcile(key) is None


class PanicException(BaseException):
    """No Exception, nor in a module that could be imported."""


@pytest.mark.parametrize(
    ("fault", "shown"), [(ZeroDivisionError("by zero"), ZeroDivisionError), (PanicException("gave up"), PanicError)]
)
async def test_a_fault_of_ours_shows_and_stays_with_its_object(
    fault: BaseException, shown: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    key = await world.submit(job_manifest())
    other = await world.submit(job_manifest(name="other"))
    original = job_controller.decide

    def faulty(observed: Observed) -> Any:
        if observed.job.metadata.name == "router":
            raise fault
        return original(observed)

    monkeypatch.setattr(job_controller, "decide", faulty)
    with pytest.raises(shown):
        await world.reconciler.reconcile(key)
    status = await world.status(key)
    assert ready(status) == ("False", "InternalError")
    assert shown.__name__ in (status.message or "")
    assert errors(world, "Internal") == 1
    await world.reconciler.reconcile(other)
    assert (await world.status(other)).phase == "Preparing"
    monkeypatch.setattr(job_controller, "decide", original)
    status = await world.run(key, until=lambda status: status.phase in TERMINAL_PHASES)
    assert status.phase == "Succeeded"


async def test_a_spec_that_cannot_be_read_is_held() -> None:
    world = World()
    key = await world.submit(job_manifest())
    world.cluster.edit(
        kind="FineTuneJob", namespace="ml", name="router", change=lambda job: job["spec"]["method"].update(type="Magic")
    )
    assert await world.reconciler.reconcile(key) is None
    found = await world.cluster.get(kind="FineTuneJob", namespace="ml", name="router")
    assert found is not None
    conditions = {each["type"]: each for each in found["status"]["conditions"]}
    assert conditions["Stalled"]["reason"] == "NotSupported"
    assert "spec.method.type" in conditions["Stalled"]["message"]


async def test_what_a_newer_operator_wrote_is_kept() -> None:
    world = World()
    key = await world.submit(job_manifest())
    await world.reconcile(key)
    world.cluster.edit(
        kind="FineTuneJob", namespace="ml", name="router", change=lambda job: job["status"].update(fromTheFuture=[1])
    )
    await world.run(key, until=lambda status: status.phase == "Training")
    found = await world.cluster.get(kind="FineTuneJob", namespace="ml", name="router")
    assert found is not None
    assert found["status"]["fromTheFuture"] == [1]


async def test_an_object_that_is_gone_is_forgotten() -> None:
    world = World()
    assert await world.reconcile(Key(kind="FineTuneJob", namespace="ml", name="nobody")) is None


async def test_a_run_costs_few_calls() -> None:
    """Reads and writes of a whole run; a regression here is load on every apiserver."""
    world = World()
    calls: list[str] = []

    class Counting(CountingCluster):
        async def get(self, **address: Any) -> Manifest | None:
            calls.append(f"get {address['kind']}")
            return await super().get(**address)

        async def list(self, **what: Any) -> list[Manifest]:
            calls.append(f"list {what['kind']}")
            return await super().list(**what)

    cluster = Counting(inner=world.cluster)
    world.restart_operator(cluster=lambda _: cluster)
    key = await world.submit(job_manifest())
    await world.reconcile(key)
    # get, claim, status; lists, ConfigMap, Job, status: nothing more stands between the job and its first pod.
    assert [*calls, *cluster.writes] == [
        "get FineTuneJob",
        "get PersistentVolumeClaim",
        "list Job",
        "list Pod",
        "status Pending",
        "create ConfigMap router-prepare-1",
        "create Job router-prepare-1",
        "status Preparing",
    ]
    await world.run(key, until=lambda status: status.phase in TERMINAL_PHASES)
    assert len(cluster.writes) <= 20
