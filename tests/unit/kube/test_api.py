"""The calls to the apiserver, against a server that misbehaves on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from finetune_operator.core.ports import InvalidError, UnavailableError
from finetune_operator.kube import api as api_module
from finetune_operator.kube.api import Api
from finetune_operator.kube.cluster import KubernetesCluster
from finetune_operator.kube.process import resource_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PATH = "/api/v1/namespaces/a/configmaps"


@asynccontextmanager
async def talking_to(
    handler: Handler, *, timeout_seconds: float = 5.0
) -> AsyncIterator[tuple[Api, list[tuple[str, int]]]]:
    """A client whose apiserver is `handler`, and the calls that its observer was told of."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    seen: list[tuple[str, int]] = []
    api = Api(
        configuration=Configuration(host=f"http://127.0.0.1:{port}"),
        timeout_seconds=timeout_seconds,
        observer=lambda method, _, status, __: seen.append((method, status)),
    )
    try:
        yield api, seen
    finally:
        await api.close()
        await runner.cleanup()


def config_map(name: str) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "a"}}


async def test_pages_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "PAGE_SIZE", 2)
    names = [f"c{number}" for number in range(5)]
    queries: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        queries.append(dict(request.query))
        start = int(request.query.get("continue", "0"))
        following = str(start + 2) if start + 2 < len(names) else ""
        items = [config_map(name) for name in names[start : start + 2]]
        return web.json_response({"metadata": {"continue": following}, "items": items})

    async with talking_to(answer) as (api, seen):
        found = await KubernetesCluster(api=api).list(kind="ConfigMap", namespace="a", labels={"x": "y", "z": "1"})
    assert [item["metadata"]["name"] for item in found] == names
    assert {(item["apiVersion"], item["kind"]) for item in found} == {("v1", "ConfigMap")}
    assert queries[0] == {"labelSelector": "x=y,z=1", "limit": "2"}
    assert seen == [("GET", 200)] * 3


async def test_pages_go_on_in_a_newer_state_when_theirs_is_gone() -> None:
    async def answer(request: web.Request) -> web.Response:
        token = request.query.get("continue")
        if token is None:
            return web.json_response({"metadata": {"continue": "old"}, "items": [config_map("c0")]})
        if token == "old":
            expired = {"kind": "Status", "reason": "Expired", "metadata": {"continue": "newer"}}
            return web.json_response(expired, status=410)
        return web.json_response({"metadata": {}, "items": [config_map("c1")]})

    async with talking_to(answer) as (api, _):
        found = await KubernetesCluster(api=api).list(kind="ConfigMap", namespace="a")
    assert [item["metadata"]["name"] for item in found] == ["c0", "c1"]


async def test_a_type_that_is_not_installed_has_no_objects() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="404 page not found", status=404)

    async with talking_to(answer) as (api, _):
        cluster = KubernetesCluster(api=api)
        assert await cluster.list(kind="Workload", namespace=None) == []
        assert await cluster.get(kind="Workload", namespace="a", name="b") is None


async def test_several_namespaces_are_listed_one_by_one() -> None:
    async def answer(request: web.Request) -> web.Response:
        namespace = request.path.split("/")[4]
        item = {"metadata": {"name": "x", "namespace": namespace}}
        return web.json_response({"metadata": {}, "items": [item]})

    async with talking_to(answer) as (api, _):
        found = await KubernetesCluster(api=api, namespaces=("b", "a")).list(kind="Pod", namespace=None)
    assert [item["metadata"]["namespace"] for item in found] == ["a", "b"]


async def test_silence_ends_in_time() -> None:
    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(2)
        return web.Response()

    async with talking_to(answer, timeout_seconds=0.2) as (api, seen):
        with pytest.raises(UnavailableError, match=f"GET {PATH}"):
            await api.request(method="GET", path=PATH)
    assert seen == [("GET", 0)]


async def test_a_connection_that_breaks() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with talking_to(answer) as (api, _):
        with pytest.raises(UnavailableError):
            await api.request(method="POST", path=PATH, body={})


async def test_nobody_there() -> None:
    api = Api(configuration=Configuration(host="http://127.0.0.1:1"))
    with pytest.raises(UnavailableError):
        await api.request(method="GET", path=PATH)
    await api.close()


async def test_a_proxy_that_answers_with_a_page() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="<html>Bad gateway</html>", status=502, content_type="text/html")

    async with talking_to(answer) as (api, seen):
        with pytest.raises(UnavailableError, match="HTTP 502"):
            await api.request(method="GET", path=PATH)
    assert seen == [("GET", 502)]


async def test_events_are_bounded_and_losing_one_loses_nothing() -> None:
    bodies = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({"message": "no"}, status=500)

    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "r" * 253, "namespace": "a", "uid": "u"},
    }
    async with talking_to(answer) as (api, _):
        cluster = KubernetesCluster(api=api)
        await cluster.record_event(regarding=job, type="Warning", reason="R" * 200, message="m" * 5000)
    (event,) = bodies
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["note"]) == 1024
    assert len(event["reason"]) == 128
    assert event["regarding"]["uid"] == "u"


async def test_writes_are_refused_where_a_field_is_unknown() -> None:
    queries = []

    async def answer(request: web.Request) -> web.Response:
        queries.append((request.method, request.query_string))
        return web.json_response({"message": 'strict decoding error: unknown field "x"'}, status=400)

    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "a"}}
    async with talking_to(answer) as (api, _):
        cluster = KubernetesCluster(api=api)
        with pytest.raises(InvalidError):
            await cluster.create(manifest=manifest)
        with pytest.raises(InvalidError):
            await cluster.apply(manifest={**manifest, "metadata": {**manifest["metadata"], "uid": "seen"}})
    assert [method for method, _ in queries] == ["POST", "PATCH"]
    assert all("fieldValidation=Strict" in query and "fieldManager=finetune-operator" in query for _, query in queries)


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/namespaces/a/pods", "pods"),
        ("/api/v1/namespaces/a/pods/b", "pods"),
        ("/api/v1/pods", "pods"),
        ("/api/v1/namespaces/a", "namespaces"),
        ("/apis/batch/v1/jobs", "jobs"),
        ("/apis/finetune.dev/v1alpha1/namespaces/a/finetunejobs/b/status", "finetunejobs"),
        ("/apis/authentication.k8s.io/v1/tokenreviews", "tokenreviews"),
        ("/apis/finetune.dev/v1alpha1", "discovery"),
        ("/version", "discovery"),
    ],
)
def test_paths_become_a_closed_set_of_labels(path: str, resource: str) -> None:
    assert resource_of(path) == resource
