"""Logs of a cluster's containers, as `finetune logs` reads them."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from tests.unit.kube.test_api import Handler, talking_to

from finetune_operator.core.ports import NotFoundError, UnavailableError
from finetune_operator.kube.cluster import KubernetesCluster
from finetune_operator.kube.user_session import UserSession


async def log_of(handler: Handler, *, follow: bool = True) -> list[bytes]:
    async with talking_to(handler, timeout_seconds=0.2) as (api, _):
        session = UserSession(api=api, cluster=KubernetesCluster(api=api), namespace="ml", server="")
        pieces = session.log(namespace="ml", pod="p", container="trainer", follow=follow)
        return [piece async for piece in pieces]


@pytest.mark.parametrize("follow", [True, False])
async def test_a_log_comes_in_pieces_for_as_long_as_it_goes_on(follow: bool) -> None:
    """Longer than any other request may take."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b"one\n", b"two\n"):
            await response.write(piece)
            await asyncio.sleep(0.3)
        return response

    assert await log_of(answer, follow=follow) == [b"one\n", b"two\n"]
    flag = str(follow).lower()
    assert asked == [f"/api/v1/namespaces/ml/pods/p/log?container=trainer&follow={flag}"]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (400, NotFoundError, r"pod p has no log \(yet\): ContainerCreating"),
        (404, NotFoundError, r"pod p has no log \(yet\): ContainerCreating"),
        (403, UnavailableError, "the log of pod p: ContainerCreating"),
        (500, UnavailableError, "the log of pod p: ContainerCreating"),
    ],
)
async def test_a_log_that_is_not_to_be_had_says_why(status: int, error: type[Exception], words: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"message": "ContainerCreating"}, status=status)

    with pytest.raises(error, match=words):
        await log_of(answer)


async def test_a_log_that_breaks_off_is_no_end() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"one\n")
        assert request.transport is not None
        request.transport.close()
        return response

    with pytest.raises(UnavailableError, match="the log of pod p: "):
        await log_of(answer)
