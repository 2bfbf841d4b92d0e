"""Clients that hang up, read too slowly, send far too much or the wrong key: nothing of theirs stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import openai
import pytest
from aiohttp import web
from tests.local.gateway.conftest import GatewayProcess, Upstream, eventually
from tests.local.gateway.test_gateway_process import HELLO, arm, post
from tests.patience import HANGS_S
from tests.staying import stays

PROMPT_BYTES = 10_000_000
STREAM = json.dumps({**HELLO, "stream": True}).encode()


async def under_way(client: aiohttp.ClientSession, gateway: GatewayProcess) -> float:
    """Client requests that the gateway holds, by its own count."""
    async with client.get(f"http://127.0.0.1:{gateway.status_port}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("finetune_gateway_requests_in_flight "))


async def nothing_stays(client: aiohttp.ClientSession, gateway: GatewayProcess, upstream: Upstream) -> None:
    """Neither a request under way nor a connection to the version."""
    await eventually(lambda: upstream.open_streams == 0)
    deadline = time.monotonic() + HANGS_S
    while await under_way(client, gateway) > 0:
        assert time.monotonic() < deadline, "a request stays under way"
        await asyncio.sleep(0.05)
    await eventually(lambda: not gateway.observations()["draining"])


async def told(gateway: GatewayProcess) -> None:
    """The access log has the request that nobody waited for, and nothing went wrong in the gateway."""
    log = gateway.folder / "gateway.log"
    await eventually(lambda: " POST /v1/chat/completions 499 " in log.read_text())
    assert "Traceback" not in log.read_text()


async def slow_reader(gateway: GatewayProcess, *, body: bytes = STREAM) -> socket.socket:
    """A client that has asked and whose own buffer holds next to nothing."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(0)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, ("127.0.0.1", gateway.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    await loop.sock_sendall(made, head.encode() + body)
    return made


async def test_clients_that_hang_up_end_their_streams_at_the_version(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    stable.endless = True
    answers = [await client.post(gateway.url + "/v1/chat/completions", data=STREAM) for _ in range(5)]
    for answer in answers:
        await answer.content.readany()
    assert (stable.open_streams, await under_way(client, gateway)) == (5, 5)
    for answer in answers:
        answer.close()
    await nothing_stays(client, gateway, stable)
    assert len(stable.seen) == 5, "nothing is tried elsewhere for somebody who is gone"
    assert arm(gateway, "old").get("errors", 0) == 0, "it says nothing about the version"
    assert (await post(client, gateway))[0] == 200
    await told(gateway)


async def test_a_client_that_reads_a_byte_a_second_holds_up_nobody_and_is_let_go(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start(TIMEOUT_SECONDS="3")
    await gateway.ready()
    stable.endless = True
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    with await slow_reader(gateway) as reader:
        while time.monotonic() - began < 2.5:
            assert await loop.sock_recv(reader, 1)
            assert (await post(client, gateway))[0] == 200
            await asyncio.sleep(1)
        await nothing_stays(client, gateway, stable)
        assert 2.5 < time.monotonic() - began < 60
    assert arm(gateway, "old").get("errors", 0) == 0, "the client was slow, not the version"
    assert (await post(client, gateway))[0] == 200
    await told(gateway)


async def test_a_client_that_takes_its_time_to_read_makes_no_version_slow(
    gateway: GatewayProcess, stable: Upstream
) -> None:
    """A few of them, in one step or after a promotion, could have a version rolled back."""
    limit_seconds = 3.0
    gateway.route(stable, judging={"latencyLimitSeconds": limit_seconds})
    gateway.start()
    await gateway.ready()
    stable.text = " ".join(["x" * 250_000] * 40)  # more than operating systems keep for a connection
    loop = asyncio.get_running_loop()
    with await slow_reader(gateway) as reader:
        await eventually(lambda: stable.seen)
        await stays(lambda: arm(gateway, "old").get("slow", 0) == 0, seconds=limit_seconds + 1.5)
        read = b""
        while b"[DONE]" not in read:
            part = await asyncio.wait_for(loop.sock_recv(reader, 1 << 20), timeout=HANGS_S)
            assert part
            read = read[-10:] + part
    await eventually(lambda: arm(gateway, "old")["requests"] == 1)
    assert (arm(gateway, "old")["slow"], arm(gateway, "old")["errors"]) == (0, 0)
    assert arm(gateway, "old")["latencySumSeconds"] < limit_seconds


async def test_clients_that_never_ask_are_let_go(gateway: GatewayProcess, stable: Upstream) -> None:
    """They would hold a connection, of which a process may have so many, for ever."""
    gateway.route(stable)
    gateway.start(BODY_TIMEOUT_SECONDS="1")
    await gateway.ready()
    for begun in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-More: "):
        for port in (gateway.port, gateway.status_port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), timeout=HANGS_S) == b""
            writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    for _ in range(2):
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"router" in await asyncio.wait_for(reader.readuntil(b"}]}"), timeout=HANGS_S)
        await stays(lambda: not reader.at_eof(), seconds=1.5)
    writer.close()


async def test_a_long_answer_that_nobody_reads_is_given_up(gateway: GatewayProcess, stable: Upstream) -> None:
    gateway.route(stable)
    gateway.start(TIMEOUT_SECONDS="1.5")
    await gateway.ready()
    stable.text = "x" * 20_000_000
    loop = asyncio.get_running_loop()
    with await slow_reader(gateway, body=json.dumps(HELLO).encode()) as reader:
        assert await loop.sock_recv(reader, 12) == b"HTTP/1.1 200"
        await stays(lambda: gateway.process is not None and gateway.process.poll() is None, seconds=3)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := await asyncio.wait_for(loop.sock_recv(reader, 1 << 20), timeout=HANGS_S):
                received += len(part)
    assert received < 20_000_000, "the connection was closed"


async def test_a_stream_that_takes_too_long_ends_with_an_error_event(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start(TIMEOUT_SECONDS="0.5")
    await gateway.ready()
    stable.text = "word " * 500
    async with client.post(gateway.url + "/v1/chat/completions", data=STREAM) as answer:
        text = (await answer.read()).decode()
    assert answer.status == 200
    error = json.loads(text.rstrip().splitlines()[-1].removeprefix("data: "))["error"]
    assert error["message"] == "the answer was not complete within 0.5 s"
    assert "HTTP/1.1" not in text, "an answer that has begun cannot become another one"
    await nothing_stays(client, gateway, stable)
    await eventually(lambda: arm(gateway, "old")["errors"] == 1)


async def test_a_client_that_does_not_read_does_not_hold_up_the_end(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start(DRAIN_SECONDS="0.5")
    await gateway.ready()
    stable.endless = True
    with await slow_reader(gateway):
        await eventually(lambda: stable.open_streams == 1)
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(timeout=HANGS_S) == 0
    await eventually(lambda: stable.open_streams == 0)


@pytest.mark.parametrize("keys", [False, True], ids=["open", "wrong key"])
async def test_a_prompt_of_10_mb_is_refused_at_once(gateway: GatewayProcess, stable: Upstream, keys: bool) -> None:
    """As openai's client meets it, which sends the whole of it before it listens."""
    folder = gateway.folder / "keys"
    folder.mkdir()
    (folder / "team-a").write_text("secret-a\n")
    gateway.route(stable)
    gateway.start(**({"KEYS_FOLDER": str(folder)} if keys else {}))
    await gateway.ready()
    began = time.monotonic()
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(
                model="router", messages=[{"role": "user", "content": "x" * PROMPT_BYTES}]
            )
    assert time.monotonic() - began < 30
    status, words = (401, "unknown API key") if keys else (413, "larger than 4194304 bytes")
    assert (refused.value.status_code, words in refused.value.message) == (status, True), refused.value
    assert stable.seen == []


async def test_a_prompt_of_10_mb_without_its_length_is_refused(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1_000_000

    async with client.post(gateway.url + "/v1/chat/completions", data=parts()) as answer:
        assert answer.status == 413
        assert "larger than 4194304 bytes" in (await answer.json())["error"]["message"]
    assert stable.seen == []


MALFORMED = [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"null", b"[" * 100_000, b'{"a":' * 100_000]


@pytest.mark.parametrize("path", ["chat/completions", "feedback"])
async def test_malformed_json_is_refused_with_a_reason(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession, path: str
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    for body in MALFORMED:
        headers = {"Content-Type": "application/json; charset=no-such"}
        async with client.post(f"{gateway.url}/v1/{path}", data=body, headers=headers) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["type"]) == (400, "invalid_request_error"), body[:20]
        assert "JSON" in error["message"] or "request_id" in error["message"]
    assert stable.seen == []
    assert await under_way(client, gateway) == 0
    assert "Traceback" not in (gateway.folder / "gateway.log").read_text()


async def test_encodings_that_cannot_be_read_are_named_whatever_the_http_library_makes_of_them(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    for encoding in ("br", "zstd", "compress", "gzip, gzip"):
        headers = {"Content-Encoding": encoding}
        body = aiohttp.BytesPayload(json.dumps(HELLO).encode())
        async with client.post(f"{gateway.url}/v1/chat/completions", data=body, headers=headers) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (415, "unsupported_encoding"), encoding
        assert "gzip, deflate or identity" in error["message"]
    assert stable.seen == []


async def test_keys_are_told_to_nobody(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    """Neither in an answer, nor to the version, nor in the log, nor in what is reported."""
    folder = gateway.folder / "keys"
    folder.mkdir()
    (folder / "team-a").write_text("secret-of-team-a\n")
    gateway.route(stable)
    gateway.start(KEYS_FOLDER=str(folder))
    await gateway.ready()
    said = []
    for key in ("secret-of-nobody", "secret-of-team-a"):
        status, answer = await post(client, gateway, Authorization=f"Bearer {key}")
        said.append((status, json.dumps(answer)))
    assert [status for status, _ in said] == [401, 200]
    await eventually(lambda: arm(gateway, "old")["requests"] == 1)
    async with client.get(f"http://127.0.0.1:{gateway.status_port}/metrics") as metrics:
        shown = [await metrics.text(), *(answer for _, answer in said)]
    gateway.stop()
    shown += [path.read_text() for path in gateway.folder.glob("*") if path.is_file() and path.name != "signing-key"]
    assert "team-a" in (gateway.folder / "gateway.log").read_text(), "the access log names the client"
    assert not [text for text in shown if "secret-of" in text]
    assert not [headers for headers in stable.headers if "authorization" in headers]


async def test_a_refusal_leaves_the_connection_to_the_next_request(
    gateway: GatewayProcess, stable: Upstream, tmp_path: Path
) -> None:
    """Whatever was sent with what was refused."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "shop").write_text("sk-shop")
    gateway.route(stable)
    gateway.start(KEYS_FOLDER=str(keys))
    await gateway.ready()
    url, good = gateway.url + "/v1/chat/completions", {"Authorization": "Bearer sk-shop"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as one:
        for _ in range(3):
            async with one.post(url, data=b"x" * (2 << 20), headers={"Authorization": "Bearer no"}) as answer:
                assert answer.status == 401
            async with one.post(gateway.url + "/v1/nothing", data=b"x" * (2 << 20), headers=good) as answer:
                assert answer.status == 404
            async with one.post(url, json=HELLO, headers=good) as answer:
                assert answer.status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_of_http_1_0(gateway: GatewayProcess, stable: Upstream, stream: bool) -> None:
    """As nginx asks by default: an answer without chunks, which the end of the connection ends."""
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    body = json.dumps(HELLO | {"stream": stream}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    answer = await asyncio.wait_for(reader.read(), timeout=HANGS_S)
    writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"200"
    assert b"chunked" not in head.lower()
    assert rest.endswith(b"data: [DONE]\n\n") if stream else json.loads(rest)["choices"]


async def test_a_client_that_hangs_up_before_a_whole_answer_ends_it_at_the_version(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    cancelled = asyncio.Event()

    async def forever(_: object) -> web.Response:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return web.Response()

    stable._chat = forever  # type: ignore[method-assign, assignment]
    await stable.stop()
    await stable.start()
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    with pytest.raises(TimeoutError):
        await client.post(gateway.url + "/v1/chat/completions", json=HELLO, timeout=aiohttp.ClientTimeout(total=1))
    await asyncio.wait_for(cancelled.wait(), timeout=HANGS_S)


async def test_a_stream_of_a_version_that_knows_its_length(
    gateway: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession
) -> None:
    """The gateway's is another one."""
    event = b'data: {"id": "%s", "choices": [{"delta": {"content": "x"}, "finish_reason": null}]}\n\n'
    body = b"".join(event % (b"x" * 500) for _ in range(50)) + b"data: [DONE]\n\n"

    async def known(_: object) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": "text/event-stream"})

    stable._chat = known  # type: ignore[method-assign, assignment]
    await stable.stop()
    await stable.start()
    gateway.route(stable)
    gateway.start()
    await gateway.ready()
    async with client.post(gateway.url + "/v1/chat/completions", json=HELLO | {"stream": True}) as answer:
        text = await answer.text()
        assert answer.headers["X-Accel-Buffering"] == "no"
    assert (text.count('"content": "x"'), text.endswith("data: [DONE]\n\n")) == (50, True)
