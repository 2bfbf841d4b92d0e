"""kopf as the source of keys, on a real apiserver."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from kubernetes.aio.client.configuration import Configuration
from tests.api.client import open_api
from tests.conformance.objects import UNSEEN
from tests.harness import ApiServer, Object
from tests.harness.store import ROOT
from tests.patience import HANGS_S
from tests.staying import stays
from tests.wrong_manifests import valid

from finetune_operator.core.ports import Key
from finetune_operator.kube.api import Api, load_configuration
from finetune_operator.kube.watch import Changes, KopfWatchSource


@asynccontextmanager
async def watching(
    apiserver: ApiServer,
    *,
    namespaces: tuple[str, ...] = (),
    excluded_namespaces: tuple[str, ...] = (),
    instance: str = "",
    relist_seconds: float = 600,
) -> AsyncIterator[list[Key]]:
    """Keys as they come in: those of other tests' namespaces, which are being deleted, among them."""

    async def configure() -> Configuration:
        return await load_configuration(kubeconfig=str(apiserver.kubeconfig), context=None)

    keys: list[Key] = []
    async with open_api(apiserver) as api:
        source = KopfWatchSource(
            api=api,
            configure=configure,
            namespaces=namespaces,
            excluded_namespaces=excluded_namespaces,
            instance=instance,
            relist_seconds=relist_seconds,
        )
        task = asyncio.create_task(source.run(enqueue=keys.append))
        try:
            yield keys
        finally:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()


async def until(condition: Callable[[], object], *, seconds: float = HANGS_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)


async def create(api: Api, path: str, manifest: Object) -> None:
    await api.request(method="POST", path=path, body=manifest)


def job_key(namespace: str, name: str) -> Key:
    return Key(kind="FineTuneJob", namespace=namespace, name=name)


def batch_job(name: str, **labels: str) -> Object:
    container = {"name": "trainer", "image": "localhost/none"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }


OWNED = {"finetune.dev/owned-by": "FineTuneJob"}


async def test_existing_new_and_deleted_jobs_are_told(crds: ApiServer, namespace: str) -> None:
    await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "old"}}, namespace=namespace)
    async with watching(crds) as keys:
        await until(lambda: job_key(namespace, "old") in keys)
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "new"}}, namespace=namespace)
        await until(lambda: job_key(namespace, "new") in keys)
        keys.clear()
        await asyncio.to_thread(crds.kubectl.delete, "finetunejob", "old", namespace=namespace)
        await until(lambda: keys.count(job_key(namespace, "old")) == 1)
        assert job_key(namespace, "new") not in keys


async def test_children_tell_of_their_job_and_strangers_of_nobody(crds: ApiServer, namespace: str) -> None:
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    async with open_api(crds) as api, watching(crds) as keys:
        await create(api, path, batch_job("a", **OWNED, **{"finetune.dev/job": "router"}))
        await until(lambda: job_key(namespace, "router") in keys)
        await create(api, path, batch_job("stranger"))
        await create(api, path, batch_job("pretender", **{"finetune.dev/job": "other"}))  # not selected by the server
        await create(api, path, batch_job("nameless", **OWNED))
        await create(api, path, batch_job("b", **OWNED, **{"finetune.dev/job": "last"}))
        await until(lambda: job_key(namespace, "last") in keys)
        assert {key.name for key in keys if key.namespace == namespace} == {"router", "last"}


async def test_objects_are_left_as_they_are(crds: ApiServer, namespace: str) -> None:
    async with watching(crds, relist_seconds=0.5) as keys:
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "a"}}, namespace=namespace)
        await until(lambda: keys.count(job_key(namespace, "a")) >= 3)  # by the watch, and by two relists
    stored = await asyncio.to_thread(crds.kubectl.get, "finetunejob", "a", namespace=namespace)
    assert not {"annotations", "finalizers", "labels"} & set(stored["metadata"])
    assert len(stored["metadata"].get("managedFields", [])) <= 1
    assert stored["status"] == UNSEEN


async def test_only_the_namespaces_asked_for(crds: ApiServer, namespace: str) -> None:
    with crds.namespace_named() as other:
        async with watching(crds, namespaces=(namespace,)) as keys:
            for place in (other, namespace):
                await asyncio.to_thread(
                    crds.kubectl.create, valid("job") | {"metadata": {"name": "a"}}, namespace=place
                )
            await until(lambda: job_key(namespace, "a") in keys)
            assert {key.namespace for key in keys} == {namespace}


async def test_all_namespaces_but_the_excluded_ones(crds: ApiServer, namespace: str) -> None:
    with crds.namespace_named() as other:
        async with watching(crds, excluded_namespaces=(other,), relist_seconds=1) as keys:
            for place in (other, namespace):
                await asyncio.to_thread(
                    crds.kubectl.create, valid("job") | {"metadata": {"name": "a"}}, namespace=place
                )
            await until(lambda: keys.count(job_key(namespace, "a")) >= 3)  # by the watch, and by two relists
            assert other not in {key.namespace for key in keys}


async def test_an_object_that_becomes_another_operators_is_told(crds: ApiServer, namespace: str) -> None:
    def write(status: Object) -> None:
        crds.kubectl.patch("finetunejob", "a", {"status": status}, namespace=namespace, subresource="status")

    key = job_key(namespace, "a")
    async with watching(crds, instance="blue") as keys:
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "a"}}, namespace=namespace)
        await until(lambda: key in keys)
        keys.clear()
        await asyncio.to_thread(write, {"instance": "blue", "phase": "Pending"})  # our own claim is no news
        await asyncio.to_thread(write, {"instance": "green"})
        await until(lambda: key in keys)
        assert keys.count(key) == 1
        await asyncio.to_thread(write, {"instance": "blue"})
        await until(lambda: keys.count(key) == 2)


async def test_a_relist_looks_at_what_has_not_ended(crds: ApiServer, namespace: str) -> None:
    for name, phase in (("ended", "Succeeded"), ("going", "Training")):
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": name}}, namespace=namespace)
        await asyncio.to_thread(
            crds.kubectl.patch,
            "finetunejob",
            name,
            {"status": {"phase": phase}},
            namespace=namespace,
            subresource="status",
        )
    async with watching(crds, relist_seconds=1.5) as keys:
        await until(lambda: {job_key(namespace, "ended"), job_key(namespace, "going")} <= set(keys))
        seen = keys.count(job_key(namespace, "ended"))
        await until(lambda: keys.count(job_key(namespace, "going")) >= 4)
        assert keys.count(job_key(namespace, "ended")) == seen


async def test_a_relist_finds_what_was_deleted_unseen(
    crds: ApiServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Changes, "is_news", lambda self, *, manifest, type: type != "DELETED")
    key = job_key(namespace, "a")
    async with watching(crds, relist_seconds=1.5) as keys:
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "a"}}, namespace=namespace)
        await until(lambda: key in keys)
        await asyncio.to_thread(crds.kubectl.delete, "finetunejob", "a", namespace=namespace)
        keys.clear()
        await until(lambda: key in keys)
        await stays(lambda: keys.count(key) == 1, seconds=4)


async def test_an_outage_is_survived(crds: ApiServer, namespace: str) -> None:
    async with watching(crds) as keys:
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "a"}}, namespace=namespace)
        await until(lambda: job_key(namespace, "a") in keys)
        await asyncio.to_thread(crds.stop_apiserver)
        told = keys.count(job_key(namespace, "a"))
        await stays(lambda: keys.count(job_key(namespace, "a")) == told, seconds=3)
        await asyncio.to_thread(crds.start_apiserver)
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "b"}}, namespace=namespace)
        await until(lambda: job_key(namespace, "b") in keys)


async def test_a_watch_that_died_begins_again(crds: ApiServer, namespace: str) -> None:
    """kopf does not notice; without a watch on our own type it would be deaf for good."""
    async with watching(crds) as keys:
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "a"}}, namespace=namespace)
        await until(lambda: job_key(namespace, "a") in keys)
        keys.clear()
        await asyncio.to_thread(crds.kubectl.delete, "customresourcedefinition", "finetunejobs.finetune.dev")
        await until(lambda: job_key(namespace, "a") in keys)
        await asyncio.to_thread(crds.kubectl.apply, ROOT / "manifests" / "crd")
        await asyncio.to_thread(
            crds.kubectl.run, "wait", "--for=condition=Established", "customresourcedefinitions", "--all"
        )
        await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "b"}}, namespace=namespace)
        await until(lambda: job_key(namespace, "b") in keys)


async def test_nothing_stays_behind(crds: ApiServer, namespace: str) -> None:
    await asyncio.to_thread(crds.kubectl.create, valid("job") | {"metadata": {"name": "a"}}, namespace=namespace)
    before = threading.active_count()
    for _ in range(3):
        async with watching(crds) as keys:
            await until(lambda: job_key(namespace, "a") in keys)
    assert threading.active_count() <= before + 3  # the loop's pool keeps its idle threads
