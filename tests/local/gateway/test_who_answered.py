"""Versions whose servers speak differently look alike, and what is no answer of OpenAI's API is a failure."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.local.gateway.conftest import GatewayProcess, Upstream, eventually
from tests.local.gateway.test_both_versions import SHADOW, rules, table
from tests.local.gateway.test_gateway_process import HELLO, arm
from tests.patience import HANGS_S

from finetune_http.lost_nodes import NOTICED_SECONDS

USERS = 24
VLLM = {
    "id": "chatcmpl-8b2b91720edd4372b0579e89255b4828",
    "system_fingerprint": "vllm-0.22.1-tp8-ep-d2102000",
    "service_tier": None,
    "prompt_logprobs": None,
    "kv_transfer_params": None,
    "created": 5,
    "model": "/artifacts/v2",
}
EVENTS = {"Content-Type": "text/event-stream"}
OURS = {"id": "chatcmpl-1", "created": 9, "model": "router"}


@dataclass
class Speaks:
    """A version's server with ways of its own."""

    extra: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    separator: str = "\n"
    status: int = 200
    body: bytes | None = None
    asked: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        document = await request.json()
        if self.body is not None or self.status != 200:
            return web.Response(status=self.status, body=self.body, headers=self.headers)
        if not document.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
            whole = {**self.extra, "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 3}}
            return web.json_response(whole, headers=self.headers)
        response = web.StreamResponse(headers={**self.headers, "Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for content, finish in (("hel", None), ("lo", "stop")):
            choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
            part = {**self.extra, "object": "chat.completion.chunk", "choices": [choice]}
            event = f"data: {json.dumps(part)}\n\n".replace("\n", self.separator)
            await response.write(event.encode())
        await response.write(b"data: [DONE]" + self.separator.encode() * 2)
        return response


@pytest.fixture
async def both() -> AsyncIterator[tuple[Speaks, Speaks, list[Upstream]]]:
    """Two versions, `new` and `old`, which say what vLLM says and what our own server does."""
    versions = Speaks(VLLM, {"Server": "v2", "X-Version": "v2", "Cache-Control": "no-store"}, "\r\n"), Speaks(OURS)
    servers = []
    for version in versions:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", version.answer)
        app.router.add_post("/v1/moved", Speaks(OURS).answer)
        servers.append(TestServer(app))
        await servers[-1].start_server()
    yield *versions, [Upstream(name=name, port=int(servers[n].port or 0)) for n, name in enumerate(("new", "old"))]
    for server in servers:
        await server.close()


def shape(document: Any) -> Any:
    """Names, and what is no id and no time."""
    if isinstance(document, dict):
        return {name: shape(value) if name not in ("id", "created") else name for name, value in document.items()}
    return [shape(each) for each in document] if isinstance(document, list) else document


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("status", [200, 422])
async def test_answers_do_not_tell_which_version_gave_them(
    gateway: GatewayProcess,
    both: tuple[Speaks, Speaks, list[Upstream]],
    client: aiohttp.ClientSession,
    stream: bool,
    status: int,
) -> None:
    new, old, upstreams = both
    if status != 200:
        new.status = old.status = status
        error = {"message": "too long", "type": "BadRequestError", "param": None, "code": status}
        new.body = json.dumps({"object": "error", "error": error}).encode()
        old.body = json.dumps({"error": {**error, "type": "invalid_request_error", "code": None}}).encode()
    gateway.route(*upstreams, rules=rules(50))
    gateway.start()
    await gateway.ready()
    seen, ids = set(), set()
    for number in range(USERS):
        body = {**HELLO, "user": f"user-{number}", "stream": stream}
        async with client.post(gateway.url + "/v1/chat/completions", json=body) as answer:
            assert answer.status == status
            said = (await answer.text()).replace("data: [DONE]", "").split("data: ")
            documents = [json.loads(each) for each in said if each.strip()]
            ids |= {(each["id"], answer.headers["X-Finetune-Answer-Id"]) for each in documents if "id" in each}
            seen.add((json.dumps([shape(each) for each in documents]), tuple(sorted(set(answer.headers) - {"Date"}))))
    assert min(new.asked, old.asked) > 0
    assert len(seen) == 1, seen
    assert all(one == other for one, other in ids), "an answer is voted on by the id that is in it"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (307, b"", {"Location": "/v1/chat/completions/"}),
        (204, None, {}),
        (200, b"<html>", {"Content-Type": "text/html"}),
        (200, b'data: {"error": {"message": "no memory"}}\n\ndata: [DONE]\n\n', {"Content-Type": "text/event-stream"}),
        (200, b"data: [DONE]\n\n", {"Content-Type": "text/event-stream"}),
        (200, b": ping\r\n\r\n", {"Content-Type": "text/event-stream"}),
        (200, b'{"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}', {}),
        (200, b"never packed", {"Content-Encoding": "gzip"}),
        (200, b'{"choices": [{"message": {"content": "x"}, "logprobs": -Infinity}]}', {}),
        (200, b'data: {"choices": [{"delta": {"content": "x"}, "logprobs": NaN}]}\n\n', EVENTS),
    ],
    ids=[
        "moved",
        "nothing",
        "a page",
        "an error first",
        "an end only",
        "a comment only",
        "given up",
        "badly packed",
        "no number",
        "no number in a stream",
    ],
)
async def test_what_is_no_answer_costs_no_client_his_and_counts_against_the_version(
    gateway: GatewayProcess,
    both: tuple[Speaks, Speaks, list[Upstream]],
    status: int,
    body: bytes | None,
    headers: dict[str, str],
    stream: bool,
) -> None:
    new, old, upstreams = both
    new.status, new.body, new.headers = status, body if body is not None else b"", headers
    gateway.route(*upstreams, rules=rules(100))
    gateway.start()
    await gateway.ready()
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(**HELLO, stream=stream)  # type: ignore[call-overload]
        if stream:
            text = "".join([chunk.choices[0].delta.content async for chunk in answer])
        else:
            text = answer.choices[0].message.content
        assert text == "hello"
        await eventually(lambda: arm(gateway, "new")["errors"] == 1)
        old.status, old.body, old.headers = new.status, new.body, new.headers
        with pytest.raises(openai.InternalServerError) as failed:
            await sdk.chat.completions.create(**HELLO, stream=stream)  # type: ignore[call-overload]
    assert (failed.value.status_code, failed.value.type, failed.value.code) == (502, "server_error", "no_answer")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_answer_in_the_other_form_is_none(
    gateway: GatewayProcess, both: tuple[Speaks, Speaks, list[Upstream]], stream: bool
) -> None:
    """A client reads what it asked for: an object, or events."""
    new, _, upstreams = both
    choice = {"index": 0, "finish_reason": "stop"}
    if stream:
        new.body = json.dumps({"choices": [choice | {"message": {"content": "wrong"}}]}).encode()
    else:
        new.body = b"data: %s\n\ndata: [DONE]\n\n" % json.dumps({"choices": [choice | {"delta": {}}]}).encode()
        new.headers = EVENTS
    gateway.route(*upstreams, rules=rules(100))
    gateway.start()
    await gateway.ready()
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(**HELLO, stream=stream)  # type: ignore[call-overload]
        if stream:
            assert "".join([chunk.choices[0].delta.content async for chunk in answer]) == "hello"
        else:
            assert answer.choices[0].message.content == "hello"
    await eventually(lambda: arm(gateway, "new")["errors"] == 1)


def peak_mib(process: int) -> float:
    """The most memory that a process has held."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


async def test_an_answer_without_end_is_not_kept_in_memory(
    gateway: GatewayProcess, both: tuple[Speaks, Speaks, list[Upstream]], client: aiohttp.ClientSession
) -> None:
    new, _, upstreams = both
    new.body = b'{"choices": [{"message": {"content": "' + b"x" * (200 << 20) + b'"}}]}'
    gateway.route(*upstreams, rules=rules(100))
    gateway.start()
    await gateway.ready()
    async with client.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
        assert (await answer.json())["choices"][0]["message"]["content"] == "hello"
    assert gateway.process is not None
    assert peak_mib(gateway.process.pid) < 160


async def test_copies_are_not_sent_where_clients_requests_are_not(
    gateway: GatewayProcess, both: tuple[Speaks, Speaks, list[Upstream]], client: aiohttp.ClientSession
) -> None:
    new, _, (candidate, stable) = both
    new.status, new.headers = 307, {"Location": "/v1/moved"}
    gateway.route(stable, candidate, shadow=SHADOW)
    gateway.start()
    await gateway.ready()
    async with client.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
        assert answer.status == 200
    assert (await table(gateway))["candidateOnly"] == 1


async def test_a_version_that_packs_its_answers_is_understood(
    gateway: GatewayProcess, both: tuple[Speaks, Speaks, list[Upstream]], client: aiohttp.ClientSession
) -> None:
    _, old, upstreams = both
    choice = {"index": 0, "message": {"role": "assistant", "content": "packed"}, "finish_reason": "stop"}
    old.body = gzip.compress(json.dumps({"choices": [choice]}).encode())
    old.headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    gateway.route(upstreams[1])
    gateway.start()
    await gateway.ready()
    async with client.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
        assert (await answer.json())["choices"][0]["message"]["content"] == "packed"
    assert arm(gateway, "old").get("errors", 0) == 0


SILENT = """
import asyncio, sys
from aiohttp import web
async def answer(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(600)
app = web.Application()
app.router.add_post("/v1/chat/completions", answer)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


@contextmanager
def silent(*, stopped: bool) -> Iterator[Upstream]:
    """A server `new` that sends the head of a stream and no more, or whose system alone takes connections."""
    upstream = Upstream(name="new")
    process = subprocess.Popen([sys.executable, "-c", SILENT, str(upstream.port)])
    try:
        deadline = time.monotonic() + HANGS_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", upstream.port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        if stopped:
            process.send_signal(signal.SIGSTOP)
        yield upstream
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "only its head comes"])
async def test_nobody_waits_longer_than_the_limit_for_a_server_that_says_nothing(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession, stopped: bool
) -> None:
    body = {**HELLO, "stream": True}
    with silent(stopped=stopped) as upstream:
        gateway.route(upstream, stable, rules=rules(100, overdueSeconds=1))
        gateway.start(TIMEOUT_SECONDS="8")
        await gateway.ready()
        began = time.monotonic()
        async with client.post(gateway.url + "/v1/chat/completions", json=body) as answer:
            assert (answer.status, "old" in await answer.text()) == (200, True), "the fallback answers"
        assert time.monotonic() - began < 8
        await gateway.acknowledged(gateway.route(upstream))
        began = time.monotonic()
        async with client.post(gateway.url + "/v1/chat/completions", json=body) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (504, "timeout")
        assert time.monotonic() - began < 60


async def test_a_version_that_falls_silent_in_an_answer_is_waited_for_no_longer_than_before_it(
    gateway: GatewayProcess, stable: Upstream, candidate: Upstream, client: aiohttp.ClientSession
) -> None:
    """As one that freezes: the client is told, and the version has failed, long before the limit of the request."""
    candidate.silent_after = 2
    gateway.route(candidate, stable, rules=rules(100, overdueSeconds=1.5))
    gateway.start()
    await gateway.ready()
    began = time.monotonic()
    async with client.post(gateway.url + "/v1/chat/completions", json={**HELLO, "stream": True}) as answer:
        *_, last = (await answer.text()).strip().split("data: ")
    assert 1.5 <= time.monotonic() - began < 60
    assert json.loads(last)["error"]["message"] == "the answer broke off: nothing came for 1.5 s"
    await eventually(lambda: arm(gateway, "new")["errors"] == 1)
    await eventually(lambda: candidate.open_streams == 0)


def test_a_lost_node_is_noticed_long_before_the_limit() -> None:
    """In a network of its own whose only device goes down while a version answers: nobody says that it is gone."""
    script = Path(__file__).with_name("lost_node.py")
    ran = subprocess.run(["unshare", "-rn", sys.executable, script], capture_output=True, text=True, timeout=HANGS_S)
    if ran.returncode and "unshare" in ran.stderr:
        pytest.skip(f"no network namespaces here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < NOTICED_SECONDS + 6
