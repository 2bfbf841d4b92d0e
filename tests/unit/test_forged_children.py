"""Labels are for anybody to copy: what is believed of a run is what its own Jobs and their pods say."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.objects import job_manifest, train_result
from tests.simulation.script import Hang, Script
from tests.simulation.world import World

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_operator.core.ports import AlreadyExistsError, Key, Manifest

REAL = "router-train-1"


def said(pod: Manifest, *, uid: str = "", name: str = REAL, **reference: Any) -> Manifest:
    """A pod that has ended with a result of its own making: all labels of a real one, and this owner."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, **reference}
    message = train_result().model_dump_json(by_alias=True, exclude_none=True)
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}
    metadata = {key: pod["metadata"][key] for key in ("namespace", "labels", "annotations")}
    owners = {"ownerReferences": [owner]} if uid else {}
    return {
        **{key: pod[key] for key in ("apiVersion", "kind", "spec")},
        "metadata": metadata | owners | {"name": "forged"},
        "status": {"phase": "Succeeded", "containerStatuses": [{"name": "trainer", "state": state}]},
    }


def failed(job: Manifest, **reference: Any) -> Manifest:
    """A Job that has failed, with all labels of a real one."""
    condition = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "forged"}
    metadata = {key: job["metadata"][key] for key in ("namespace", "labels")}
    owners = {"ownerReferences": [{**job["metadata"]["ownerReferences"][0], **reference}]} if reference else {}
    return {
        **{key: job[key] for key in ("apiVersion", "kind", "spec")},
        "metadata": metadata | owners | {"name": "zz-forged"},
        "status": {"conditions": [condition]},
    }


async def make(world: World, forged: Manifest) -> Manifest:
    """Creation leaves the status out, as the apiserver does; its maker writes it then."""
    await world.cluster.create(manifest=forged)
    return world.cluster.edit(
        kind=forged["kind"],
        namespace="ml",
        name=forged["metadata"]["name"],
        change=lambda found: found.update(status=forged["status"]),
    )


async def training(**changes: Any) -> tuple[World, Key]:
    world = World(script=Script(fates={("Train", 1): Hang()}))
    key = await world.submit(job_manifest(failurePolicy={"hangSeconds": 600}, **changes))
    await world.run(key, until=lambda status: status.phase == "Training" and status.stages[-1].state == "Running")
    return world, key


async def test_pods_and_jobs_of_others_change_nothing() -> None:
    world, key = await training()
    job = await world.cluster.get(kind="Job", namespace="ml", name=REAL)
    (pod,) = await world.cluster.list(kind="Pod", namespace="ml", labels={"batch.kubernetes.io/job-name": REAL})
    assert job is not None
    before = await world.status(key)
    others = [failed(job), failed(job, controller=False)]
    others = [
        await make(world, {**each, "metadata": {**each["metadata"], "name": f"zz-{number}"}})
        for number, each in enumerate(others)
    ]
    forgeries = {
        "nobody's pod": said(pod),
        "not by its controller": said(pod, uid=job["metadata"]["uid"]),
        "of somebody's Job": said(pod, uid=others[0]["metadata"]["uid"], controller=True),
        "of a Job that the run does not control": said(pod, uid=others[1]["metadata"]["uid"], controller=True),
        "of a Job of our name": said(pod, uid="no-such-job", controller=True),
    }
    for what, forged in forgeries.items():
        await make(world, forged)
        await world.reconcile(key)
        assert await world.status(key) == before, what
        world.cluster.remove(kind="Pod", namespace="ml", name="forged")


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_pod_whose_job_is_gone_is_believed_by_the_uid_that_was_recorded(recorded: bool) -> None:
    """A status of an earlier release has none: then nothing is believed, and the pod is only waited for."""
    world, key = await training()

    def forget(job: Manifest) -> None:
        job["status"]["stages"][-1].pop("childUid")

    if not recorded:
        world.cluster.edit(kind="FineTuneJob", namespace="ml", name=key.name, change=forget)
    job = await world.cluster.get(kind="Job", namespace="ml", name=REAL)
    assert job is not None
    await world.cluster.delete(kind="Job", namespace="ml", name=REAL, uid=job["metadata"]["uid"])
    await world.reconcile(key)
    assert (await world.status(key)).message == "the Job is gone, its pods are ending"
    (pod,) = await world.cluster.list(kind="Pod", namespace="ml", labels={"batch.kubernetes.io/job-name": REAL})
    done = said(pod)["status"]
    world.cluster.edit(
        kind="Pod", namespace="ml", name=pod["metadata"]["name"], change=lambda found: found.update(status=done)
    )
    await world.reconcile(key)
    stage = (await world.status(key)).stages[1]
    assert (stage.attempt, stage.result is not None) == ((1, True) if recorded else (2, False))


async def test_the_attempt_before_is_waited_for_also_where_no_uid_was_recorded() -> None:
    world, key = await training()
    before = await world.status(key)
    assert before.stages[-1].child_uid

    def forget(job: Manifest) -> None:
        for stage in job["status"]["stages"]:
            stage.pop("childUid", None)
            stage.pop("previousChildUid", None)

    world.change_spec(key, suspend=True)
    await world.reconcile(key)  # ends the attempt
    await world.reconcile(key)  # removes its Job
    assert await world.cluster.get(kind="Job", namespace="ml", name=REAL) is None
    world.cluster.edit(kind="FineTuneJob", namespace="ml", name=key.name, change=forget)
    world.change_spec(key, suspend=False)
    await world.reconcile(key)
    status: FineTuneJobStatus = await world.status(key)
    assert status.message == "waiting until the pods of the attempt before have ended"


async def test_a_job_that_somebody_made_under_the_next_name_is_neither_believed_nor_deleted() -> None:
    """With all the labels of the real one, and a pod of its own that says what it came to."""
    world = World(script=Script(fates={("Prepare", 1): Hang()}))
    key = await world.submit(job_manifest())
    await world.run(key, until=lambda status: bool(status.stages) and status.stages[0].state == "Running")
    job = await world.cluster.get(kind="Job", namespace="ml", name="router-prepare-1")
    assert job is not None
    forged = failed(job)
    labels = {**forged["metadata"]["labels"], "finetune.dev/attempt": "2"}
    made = await make(world, {**forged, "metadata": {"namespace": "ml", "labels": labels, "name": "router-prepare-2"}})
    await world.cluster.delete(kind="Job", namespace="ml", name="router-prepare-1", uid=job["metadata"]["uid"])
    for pod in await world.cluster.list(kind="Pod", namespace="ml"):
        world.cluster.remove(kind="Pod", namespace="ml", name=pod["metadata"]["name"])
    with pytest.raises(AlreadyExistsError):
        await world.reconciler.reconcile(key)
    status = await world.status(key)
    ready = status.condition("Ready")
    assert ready is not None
    assert (status.stages[0].attempt, ready.reason) == (2, "NameTaken")
    assert await world.cluster.get(kind="Job", namespace="ml", name="router-prepare-2") == made
