"""The moment between a gateway's own leaving of a version and the routes that say the same: in one process, so that the
order of events is the test's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from tests.local.gateway.conftest import Upstream, eventually
from tests.patience import HANGS_S

from finetune_api.routes import Routes
from finetune_gateway.application import Application
from finetune_gateway.config import GatewayConfig
from finetune_gateway.process import assemble

HELLO = {"model": "router", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def app() -> AsyncIterator[Application]:
    """A gateway whose background work the test does."""
    async with aiohttp.ClientSession() as session:
        yield assemble(config=GatewayConfig(endpoint="router", namespace="ns", name="gateway-0"), session=session)


def routes(epoch: int, *upstreams: Upstream, **rule: Any) -> Routes:
    variants = {each.name: {"name": each.name, "url": each.url, "ready": True} for each in upstreams}
    rules = [{"name": "all", "weights": {upstreams[-1].name: 100}, **rule}]
    document = {"epoch": epoch, "endpoint": "router", "model": "router", "task": "Chat"}
    return Routes.model_validate({**document, "variants": variants, "rules": rules})


async def test_requests_that_wait_for_a_version_are_answered_though_routes_without_it_come_as_it_is_left(
    app: Application, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    live, flights = app.live, app.proxy.flights
    breaker = {"failures": 3, "failureRatio": 0.5, "windowSeconds": 5, "overdueSeconds": 60}
    live.heard |= {"old", "new"}
    live.accept(routes(1, stable, candidate, fallback="old", breaker=breaker))
    candidate.delay = 60

    async def ask() -> tuple[int, str]:
        async with client.post(server.make_url("/v1/chat/completions"), json=HELLO) as answer:
            return answer.status, (await answer.json())["choices"][0]["message"]["content"]

    async with TestServer(app.build()) as server:
        waiting = [asyncio.create_task(ask()) for _ in range(4)]
        await eventually(lambda: len(candidate.seen) == len(waiting))
        for _ in range(3):
            live.record(epoch=1, rule="all", variant="new", failed=True, what="refused")
        flights.sweep_once(now=time.monotonic())
        live.accept(routes(2, stable))  # before any of those that wait has run
        assert await asyncio.wait_for(asyncio.gather(*waiting), timeout=HANGS_S) == [(200, "old says hello")] * 4
