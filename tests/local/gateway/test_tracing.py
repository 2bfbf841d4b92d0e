"""Spans of a real gateway process, as a real receiver of OTLP over HTTP decodes them."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.local.gateway.conftest import GatewayProcess, Upstream, eventually, free_port
from tests.patience import HANGS_S

HELLO = {"model": "router", "messages": [{"role": "user", "content": "a secret of mine"}]}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass(kw_only=True)
class Collector:
    """Takes spans, or does not."""

    port: int = field(default_factory=free_port)
    status: int = 200
    spans: list[Span] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        if self.status == 200:
            self.raw.append(body)
            found = ExportTraceServiceRequest.FromString(body)
            self.spans += [span for each in found.resource_spans for scope in each.scope_spans for span in scope.spans]
        return web.Response(status=self.status, content_type="application/x-protobuf")


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", found.port).start()
    yield found
    await runner.cleanup()


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


async def ask(client: aiohttp.ClientSession, gateway: GatewayProcess, **headers: str) -> int:
    async with client.post(gateway.url + "/v1/chat/completions", json=HELLO, headers=headers) as answer:
        await answer.read()
        return answer.status


async def test_a_span_is_between_the_clients_and_the_servers(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession, collector: Collector
) -> None:
    gateway.route(stable)
    gateway.start(TRACING_ENDPOINT=f"http://127.0.0.1:{collector.port}")
    await gateway.ready()
    assert await ask(client, gateway, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="a=1") == 200
    assert await ask(client, gateway) == 200
    await eventually(lambda: len(collector.spans) == 2)
    first, second = collector.spans
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert stable.traces[0] == {"traceparent": f"00-{TRACE}-{first.span_id.hex()}-01", "tracestate": "a=1"}
    assert second.parent_span_id == b""
    assert stable.traces[1]["traceparent"].startswith(f"00-{second.trace_id.hex()}-{second.span_id.hex()}-0")
    assert (first.name, first.kind) == ("chat router", Span.SPAN_KIND_CLIENT)
    said = attributes(first)
    said.pop("gen_ai.response.finish_reasons")
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "finetune",
        "gen_ai.request.model": "router",
        "gen_ai.response.model": "old",
        "server.address": "127.0.0.1",
        "server.port": stable.port,
        "http.response.status_code": 200,
    }
    assert 0 < first.start_time_unix_nano < first.end_time_unix_nano
    assert not any(b"secret" in body or b"says hello" in body for body in collector.raw), "nothing of what was said"


async def test_a_client_that_does_not_want_its_trace_kept(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession, collector: Collector
) -> None:
    gateway.route(stable)
    gateway.start(TRACING_ENDPOINT=f"http://127.0.0.1:{collector.port}")
    await gateway.ready()
    assert await ask(client, gateway, traceparent=f"00-{TRACE}-{PARENT}-00") == 200
    assert await ask(client, gateway) == 200
    await eventually(lambda: len(collector.spans) == 1)
    assert collector.spans[0].trace_id.hex() != TRACE
    assert stable.traces[0]["traceparent"].startswith(f"00-{TRACE}-")
    assert stable.traces[0]["traceparent"].endswith("-00")


async def test_each_version_that_was_asked_has_a_span(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession, collector: Collector
) -> None:
    candidate.status = 500
    gateway.route(stable, candidate, rules=[{"name": "all", "weights": {"new": 100, "old": 0}, "fallback": "old"}])
    gateway.start(TRACING_ENDPOINT=f"http://127.0.0.1:{collector.port}")
    await gateway.ready()
    assert await ask(client, gateway, traceparent=f"00-{TRACE}-{PARENT}-01") == 200
    await eventually(lambda: len(collector.spans) == 2)
    failed, answered = collector.spans
    assert [attributes(each)["gen_ai.response.model"] for each in (failed, answered)] == ["new", "old"]
    assert attributes(failed)["error.type"] == "500"
    assert failed.status.code == 2
    assert "error.type" not in attributes(answered)
    assert {each.parent_span_id.hex() for each in collector.spans} == {PARENT}


async def test_a_collector_that_takes_nothing_holds_up_nobody(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession, collector: Collector
) -> None:
    collector.status = 400
    gateway.route(stable)
    gateway.start(TRACING_ENDPOINT=f"http://127.0.0.1:{collector.port}")
    await gateway.ready()
    for _ in range(3):
        assert await ask(client, gateway) == 200

    async with asyncio.timeout(HANGS_S):
        while True:
            async with client.get(f"http://127.0.0.1:{gateway.status_port}/metrics") as answer:
                if "finetune_gateway_spans_dropped_total 3.0" in await answer.text():
                    break
            await asyncio.sleep(0.05)
