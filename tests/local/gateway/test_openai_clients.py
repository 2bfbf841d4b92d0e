"""What OpenAI's clients expect of errors, heads and paths; raw HTTP where a client would not send it."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import aiohttp
import openai
import pytest
from tests.local.gateway.conftest import GatewayProcess, Upstream, eventually
from tests.local.gateway.test_gateway_process import HELLO
from tests.patience import HANGS_S

KEY = "sk-SECRET-OF-TEAM-A"
PROMPT = "my PRIVATE-PROMPT 4111111111111111"
BODY = json.dumps({"model": "router", "messages": [{"role": "user", "content": PROMPT}]}).encode()


@pytest.fixture
async def served(gateway: GatewayProcess, stable: Upstream) -> GatewayProcess:
    """A gateway with a key."""
    keys = gateway.folder / "keys"
    keys.mkdir()
    (keys / "team-a").write_text(KEY)
    gateway.route(stable)
    gateway.start(KEYS_FOLDER=str(keys), ALLOWED_ORIGINS="https://chat.example.com")
    await gateway.ready()
    return gateway


async def raw(gateway: GatewayProcess, data: bytes) -> bytes:
    """What comes back for these bytes, until the gateway closes or says no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(data)
    answer = b""
    try:
        async with asyncio.timeout(2):
            while part := await reader.read(65536):
                answer += part
                head, _, body = answer.partition(b"\r\n\r\n")
                length = next((x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length: ")), None)
                if length is not None and len(body) >= int(length.split()[1]):
                    break
    except TimeoutError:
        pass
    writer.close()
    return answer


def http(*headers: str, path: str = "/v1/chat/completions", body: bytes = BODY) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1") + body


LENGTH = f"Content-Length: {len(BODY)}"
BEARER = f"Authorization: Bearer {KEY}"
MALFORMED = {
    "too short a length": http(BEARER, f"Content-Length: {len(BODY) - 40}"),
    "line feeds alone": http(BEARER, LENGTH).replace(b"\r\n", b"\n"),
    "a zero byte in the key": http(BEARER + "\x00", LENGTH),
    "a blank before the colon": http(BEARER.replace(":", " :"), LENGTH),
    "no header name": http(f": {KEY}", LENGTH),
    "chunks without sizes": http(BEARER, "Transfer-Encoding: chunked"),
    "a bad chunk later": http(BEARER, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n" + BODY + b"\r\n"),
    "two lengths": http(BEARER, LENGTH, "Content-Length: 4"),
    "a length that is none": http(BEARER, f"Content-Length: {PROMPT}"),
    "an endless line": http(BEARER, "X-Long: " + PROMPT * 1000, LENGTH),
    "a method of one's own": http(BEARER, LENGTH).replace(b"POST", f"{KEY}(".encode()),
    "a version that is none": http(BEARER, LENGTH).replace(b"HTTP/1.1", KEY.encode()),
    "no JSON": http(BEARER, LENGTH, body=BODY[:-1] + b"!"),
    "no gzip": http(BEARER, LENGTH, "Content-Encoding: gzip"),
}


async def test_malformed_requests_leave_nothing_of_prompts_or_keys_anywhere(served: GatewayProcess) -> None:
    said = {name: await raw(served, data) for name, data in MALFORMED.items()}
    for name, answer in said.items():
        assert answer.split(b" ")[1] == b"400", (name, answer[:200])
        document = json.loads(answer.partition(b"\r\n\r\n")[2].split(b"HTTP/1.")[0])
        assert document["error"]["type"] == "invalid_request_error", name
        assert b"x-request-id: " in answer.lower(), name
    served.stop()
    shown = {**said, "the log": (served.folder / "gateway.log").read_bytes()}
    for secret in (KEY, "PRIVATE-PROMPT", "41111111"):
        assert not [name for name, text in shown.items() if secret.encode() in text]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/nowhere"])
async def test_what_a_client_expects_and_nobody_offers_is_refused_in_the_one_form(
    served: GatewayProcess, path: str
) -> None:
    answer = await raw(served, http(BEARER, LENGTH, f"Expect: {PROMPT}", path=path))
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert answer.split(b" ")[1] == b"417"
    assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_expectation")
    assert set(error) == {"message", "type", "param", "code"}
    assert b"x-request-id: " in answer.lower()
    assert b"PRIVATE" not in answer


async def test_errors_are_those_that_clients_tell_apart(served: GatewayProcess) -> None:
    async with openai.AsyncOpenAI(base_url=served.url + "/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as wrong:
            await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
        assert (wrong.value.code, wrong.value.param, wrong.value.type) == (
            "model_not_found",
            "model",
            "invalid_request_error",
        )
        assert wrong.value.request_id, "errors have an id"
        assert (await client.models.retrieve("router")).id == "router"
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.models.retrieve("other/one")
        assert unknown.value.code == "model_not_found"
    async with openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            await stranger.models.list()
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"bearer {KEY}"}, {"Authorization": f"BEARER   {KEY}"}, {"api-key": KEY}, {"Api-Key": KEY}],
    ids=str,
)
async def test_a_key_is_known_however_it_is_sent(
    served: GatewayProcess, client: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with client.post(served.url + "/v1/chat/completions", data=BODY, headers=headers) as answer:
        assert answer.status == 200


async def test_heads_of_answers(served: GatewayProcess, stable: Upstream, client: aiohttp.ClientSession) -> None:
    auth = {"Authorization": f"Bearer {KEY}"}

    async def ask(method: str, path: str, data: bytes | None = BODY, **headers: str) -> tuple[int, Any, Any]:
        async with client.request(method, served.url + path, data=data, headers=auth | headers) as answer:
            return answer.status, answer.headers, await answer.text()

    status, head, _ = await ask("GET", "/v1/chat/completions")
    assert (status, head["Allow"]) == (405, "POST")
    assert (await ask("POST", "/v1/embeddings"))[0] == 404
    status, head, _ = await ask("POST", "/v1/chat/completions", **{"X-Request-Id": "order-7"})
    assert (status, head["X-Request-Id"]) == (200, "order-7")
    answer_id = head["X-Finetune-Answer-Id"]
    streamed = json.dumps({**HELLO, "stream": True}).encode()
    status, head, _ = await ask("POST", "/v1/chat/completions", streamed, **{"X-Request-Id": "order-8"})
    assert (status, head["X-Request-Id"], len(head["X-Finetune-Answer-Id"])) == (200, "order-8", 48)
    status, head, _ = await ask("POST", "/v1/chat/completions", **{"X-Request-Id": "x" * 200})
    assert head["X-Request-Id"] == head["X-Finetune-Answer-Id"], "what is too long is not kept"
    ballot = json.dumps({"request_id": answer_id, "rating": "up"}).encode()
    assert (await ask("POST", "/v1/feedback", ballot))[0] == 200
    log = served.folder / "gateway.log"
    await eventually(lambda: f"answer={answer_id} request=order-7 epoch=1 rule=all version=old" in log.read_text())
    assert {"x-request-id", "authorization"}.isdisjoint({name for each in stable.headers for name in each})


async def test_bodies_may_be_packed(served: GatewayProcess, client: aiohttp.ClientSession) -> None:
    packed = gzip.compress(BODY)

    async def ask(body: bytes, encoding: str) -> tuple[int, str | None]:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Encoding": encoding}
        async with client.post(served.url + "/v1/chat/completions", data=body, headers=headers) as answer:
            return answer.status, (await answer.json()).get("error", {}).get("code")

    halves = gzip.compress(BODY[:20]) + gzip.compress(BODY[20:])
    bare = zlib.compress(BODY)[2:-4]
    for body, encoding in ((packed, "gzip"), (halves, "GZIP"), (zlib.compress(BODY), "deflate"), (bare, "deflate")):
        assert await ask(body, encoding) == (200, None)
    damaged = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    for body in (BODY, b"", damaged, packed + b"more", *(packed[:-missing] for missing in (1, 4, 8, 20))):
        assert await ask(body, "gzip") == (400, "invalid_body")
    for body in (zlib.compress(BODY)[:-1], bare[:-1]):
        assert await ask(body, "deflate") == (400, "invalid_body")
    assert await ask(gzip.compress(b"x" * 50_000_000), "gzip") == (413, "request_too_large")
    for unknown in ("br", "zstd", "compress", "gzip, gzip"):
        assert await ask(BODY, unknown) == (415, "unsupported_encoding")


async def test_pages_of_configured_origins_may_read_answers(
    served: GatewayProcess, client: aiohttp.ClientSession
) -> None:
    url = served.url + "/v1/chat/completions"
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    for origin, may in (("https://chat.example.com", True), ("https://evil.example.com", False)):
        async with client.options(url, headers={"Origin": origin, **asks}) as preflight:
            assert preflight.headers.get("Access-Control-Allow-Origin") == (origin if may else None)
            if may:
                assert preflight.status == 204
                assert "x-stainless-os" in preflight.headers["Access-Control-Allow-Headers"]
        headers = {"Origin": origin, "Authorization": f"Bearer {KEY}"}
        for body in (BODY, json.dumps({**HELLO, "stream": True}).encode(), b"{"):
            async with client.post(url, data=body, headers=headers) as answer:
                assert answer.headers.get("Access-Control-Allow-Origin") == (origin if may else None)
                assert answer.headers["Vary"] == "Origin"


async def test_a_silent_stream_gets_comments_that_clients_skip(gateway: GatewayProcess, stable: Upstream) -> None:
    gateway.route(stable)
    gateway.start(HEARTBEAT_SECONDS="0.1")
    await gateway.ready()
    stable.go_on = asyncio.Event()
    body = json.dumps({**HELLO, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with openai.AsyncOpenAI(
        base_url=gateway.url + "/v1", api_key="any", max_retries=0, timeout=HANGS_S
    ) as client:
        asked = asyncio.create_task(client.chat.completions.create(**HELLO, stream=True))
        writer.write(http(f"Content-Length: {len(body)}", body=body))
        seen = b""
        while seen.count(b": waiting") < 3:
            seen += await asyncio.wait_for(reader.read(65536), timeout=HANGS_S)
        assert b"data:" not in seen, "the event that has begun is not cut in two"
        stable.go_on.set()
        while b"[DONE]" not in seen:
            seen += await asyncio.wait_for(reader.read(65536), timeout=HANGS_S)
        words = [chunk.choices[0].delta.content or "" async for chunk in await asked]
    writer.close()
    assert "".join(words) == "old says hello "
    await eventually(lambda: gateway.observations()["arms"][0].get("requests") == 2)
    assert gateway.observations()["arms"][0].get("errors", 0) == 0
