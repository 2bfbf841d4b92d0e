"""What versions do wrong is counted against whichever does it, and clients can read how an answer ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from aiohttp.test_utils import TestServer
from tests.local.gateway.conftest import GatewayProcess, Upstream, eventually
from tests.local.gateway.test_gateway_process import HELLO, arm, post
from tests.local.gateway.test_left_while_switching import routes

from finetune_gateway.config import GatewayConfig
from finetune_gateway.process import assemble

CHUNK = b'data: {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "router", "choices": [%s]}\n\n'
ONE = CHUNK % b'{"index": 0, "delta": {"content": "one "}}'
SHADOW = {"candidate": "new", "stable": "old", "percent": 100, "timeoutSeconds": 5}


def rules(new: float, **breaker: Any) -> list[dict[str, Any]]:
    settings = {"failures": 1000, **breaker}
    return [{"name": "all", "weights": {"new": new, "old": 100 - new}, "fallback": "old", "breaker": settings}]


async def table(gateway: GatewayProcess, metric: str = "error_rate") -> dict[str, int]:
    await eventually(lambda: gateway.observations()["pairs"])
    return next(each for each in gateway.observations()["pairs"] if each["metric"] == metric)


@pytest.mark.parametrize(
    ("new", "old", "found"),
    [(404, 200, (1, 0, 0)), (200, 400, (0, 1, 0)), (422, 400, (0, 0, 0)), (429, 200, (1, 0, 0))],
)
async def test_a_copy_that_only_one_version_refuses_has_failed_there(
    gateway: GatewayProcess,
    stable: Upstream,
    candidate: Upstream,
    client: aiohttp.ClientSession,
    new: int,
    old: int,
    found: tuple[int, int, int],
) -> None:
    candidate.status, stable.status = new, old
    gateway.route(stable, candidate, shadow=SHADOW)
    gateway.start()
    await gateway.ready()
    assert (await post(client, gateway))[0] == old
    pairs = await table(gateway)
    assert (pairs["candidateOnly"], pairs["stableOnly"], pairs["both"]) == found


async def test_a_version_that_refuses_everybody_is_counted_by_users(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    candidate.status = 404
    gateway.route(candidate, stable, rules=rules(100))
    gateway.start()
    await gateway.ready()
    for number in range(6):
        assert (await post(client, gateway, {**HELLO, "user": f"user-{number % 2}"}))[0] == 404
    await eventually(lambda: arm(gateway, "new")["requests"] == 6)
    assert (arm(gateway, "new")["clients"], arm(gateway, "new")["clientErrors"]) == (2, 2)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_version_that_is_too_busy_costs_no_client_an_answer(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession, status: int
) -> None:
    candidate.status = status
    gateway.route(candidate, stable, rules=rules(100))
    gateway.start()
    await gateway.ready()
    assert (await post(client, gateway))[1]["choices"][0]["message"]["content"] == "old says hello"
    await eventually(lambda: arm(gateway, "new")["errors"] == 1)
    assert arm(gateway, "old").get("requests", 0) == 0, "what it answered instead says nothing about it"


async def test_overdue_counts_at_either_version(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    stable.delay = candidate.delay = 1.2
    gateway.route(candidate, stable, rules=rules(50, overdueSeconds=0.5))
    gateway.start()
    await gateway.ready()
    answers = await asyncio.gather(*(post(client, gateway, {**HELLO, "user": f"u{n}"}) for n in range(20)))
    assert {status for status, _ in answers} == {200}
    await eventually(lambda: arm(gateway, "old")["requests"] + arm(gateway, "new")["requests"] == 20)
    for name in ("old", "new"):
        assert arm(gateway, name)["errors"] == arm(gateway, name)["requests"] > 0


class Streaming:
    """A version whose streams end as a test says."""

    body = b""
    cut = False
    goes_on = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(self.body)
        while self.goes_on:
            await response.write(b": still here\n\n")
            await asyncio.sleep(0.01)
        if self.cut:
            assert request.transport is not None
            await asyncio.sleep(0.05)
            request.transport.abort()
        return response


@pytest.fixture
async def streaming() -> AsyncIterator[tuple[Streaming, Upstream]]:
    version, app = Streaming(), web.Application()
    app.router.add_post("/v1/chat/completions", version.answer)
    async with TestServer(app) as server:
        yield version, Upstream(name="old", port=int(server.port or 0))


@pytest.mark.parametrize(
    ("body", "cut", "words"),
    [
        (ONE + b'data: {"error": {"message": "CUDA out of memory"}}\n\n', False, "CUDA out of memory"),
        (ONE + b'data: {"error": {"message": "CUDA out of memory"}}\n\ndata: [DONE]\n\n', False, "CUDA out of memory"),
        (ONE, False, "without"),
        (ONE + ONE[:40], True, "broke off"),
        (ONE + ONE[:40], False, "middle of an event"),
    ],
    ids=["error", "error and done", "no end", "cut in an event", "ends in an event"],
)
async def test_a_stream_that_fails_inside_is_a_failure_and_its_client_is_told(
    gateway: GatewayProcess, streaming: tuple[Streaming, Upstream], body: bytes, cut: bool, words: str
) -> None:
    version, upstream = streaming
    version.body, version.cut = body, cut
    gateway.route(upstream)
    gateway.start()
    await gateway.ready()
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as sdk:
        for _ in range(2):  # on the same connection, or on another one
            texts = []
            stream = await sdk.chat.completions.create(**HELLO, stream=True)  # type: ignore[call-overload]
            with pytest.raises(openai.APIError, match=words):
                async for chunk in stream:
                    texts.append(chunk.choices[0].delta.content)
            assert texts == ["one "]
    await eventually(lambda: arm(gateway, "old")["errors"] == 2)


async def test_a_failure_counts_whose_client_leaves_when_it_is_told(
    gateway: GatewayProcess, streaming: tuple[Streaming, Upstream]
) -> None:
    version, upstream = streaming
    version.body, version.goes_on = ONE + b'data: {"error": {"message": "CUDA out of memory"}}\n\n', True
    gateway.route(upstream)
    gateway.start()
    await gateway.ready()
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(f"{gateway.url}/v1/chat/completions", json={**HELLO, "stream": True}) as answer:
                assert b"CUDA out of memory" in await read_until(answer, b"CUDA")
    await eventually(lambda: arm(gateway, "old")["errors"] == 2)


async def read_until(answer: aiohttp.ClientResponse, word: bytes) -> bytes:
    """What came up to a line with it; the rest is left."""
    read = b""
    while word not in read:
        read += await answer.content.readline()
    return read


async def test_after_an_answer_that_broke_off_its_connection_serves_the_next_request(
    gateway: GatewayProcess, streaming: tuple[Streaming, Upstream]
) -> None:
    version, upstream = streaming
    version.body = ONE
    gateway.route(upstream)
    gateway.start()
    await gateway.ready()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for _ in range(20):
            async with session.post(gateway.url + "/v1/chat/completions", json={**HELLO, "stream": True}) as answer:
                assert (await answer.read()).rstrip().endswith(b"}}"), "the event that says what was wrong"


async def test_a_failing_stream_of_stable_is_compared_too(
    gateway: GatewayProcess, streaming: tuple[Streaming, Upstream], candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    version, stable = streaming
    version.body = ONE
    gateway.route(stable, candidate, shadow=SHADOW)
    gateway.start()
    await gateway.ready()
    async with client.post(gateway.url + "/v1/chat/completions", json={**HELLO, "stream": True}) as answer:
        await answer.read()
    assert (await table(gateway))["stableOnly"] == 1


async def test_long_answers_that_are_equal_are_equally_good(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    stable.text = candidate.text = " ".join(f"word{number}" for number in range(100_000))
    gateway.route(stable, candidate, shadow=SHADOW)
    gateway.start()
    await gateway.ready()
    assert (await post(client, gateway))[0] == 200
    quality = await table(gateway, "quality")
    assert (quality["pairs"], quality["candidateOnly"], quality["stableOnly"]) == (1, 0, 0)


async def test_versions_are_told_the_model_in_copies_and_probes_too(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable, candidate, shadow={**SHADOW, "probe": {"ratePerSecond": 50}})
    gateway.start()
    await gateway.ready()
    await eventually(lambda: len(stable.seen) == len(candidate.seen) == 5)  # none is copied before both have answered
    await post(client, gateway, {"messages": HELLO["messages"]})
    await eventually(lambda: len(stable.seen) == len(candidate.seen) == 6)
    assert {seen.get("model") for seen in (*stable.seen, *candidate.seen)} == {"router"}


async def test_all_attempts_together_have_the_limit_s_time(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    stable.delay = candidate.delay = 60
    gateway.route(candidate, stable, rules=rules(100, overdueSeconds=3.5))
    gateway.start(TIMEOUT_SECONDS="4")
    await gateway.ready()
    began = time.monotonic()
    status, _ = await post(client, gateway)
    assert (status, time.monotonic() - began < 7) == (504, True)


class NoNames(AbstractResolver):
    """A name server that never answers."""

    async def resolve(self, host: str, *_: Any, **__: Any) -> Any:
        await asyncio.sleep(60)

    async def close(self) -> None:
        pass


async def test_a_name_that_is_not_resolved_is_not_waited_for(stable: Upstream, client: aiohttp.ClientSession) -> None:
    lost = Upstream(name="new")
    table = routes(1, stable, lost, fallback="old", breaker={"overdueSeconds": 30})
    table.variants["new"] = table.variants["new"].model_copy(update={"url": "http://new.svc:8000"})
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=NoNames())) as session:
        app = assemble(config=GatewayConfig(endpoint="router", namespace="ns", name="gateway-0"), session=session)
        app.live.heard.add("new")
        app.live.accept(table)
        async with TestServer(app.build()) as server:
            began = time.monotonic()
            async with client.post(server.make_url("/v1/chat/completions"), json=HELLO) as answer:
                text = json.loads(await answer.read())["choices"][0]["message"]["content"]
    assert (text, time.monotonic() - began < 25) == ("old says hello", True)
