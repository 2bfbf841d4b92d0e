"""OpenAI's API as its own client and as careless clients use it, answered by a small model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from tests.local.eventually import eventually
from tests.patience import HANGS_S
from tests.trainer.serving.server_process import ENDPOINT, ServerProcess, get, order_for, post, serving

from finetune_api.base import VersionReference

DELIBERATE = Path(__file__).with_name("deliberate.py")
"""220 tokens take more than a second, whatever the machine."""
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server(small_chat: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("chat-server")
    order = order_for(small_chat, folder=folder, maxNewTokens=400, concurrency=2, maxWaiting=2)
    with serving(folder, order, program=(str(DELIBERATE), "serve")) as process:
        yield process


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_an_answer_is_the_same_streamed_and_whole(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=ENDPOINT, messages=HELLO, max_tokens=40)
    stream = await client.chat.completions.create(
        model=ENDPOINT, messages=HELLO, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert text.strip()
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 40
    assert len(chunks) > 10, "it is streamed as it is generated"


async def test_decoding_is_greedy_unless_asked_and_seeds_repeat(client: openai.AsyncOpenAI) -> None:
    async def ask(**options: Any) -> str | None:
        answer = await client.chat.completions.create(model=ENDPOINT, messages=HELLO, max_tokens=12, **options)
        return answer.choices[0].message.content

    assert await ask() == await ask(temperature=0) == await ask(temperature=1.5, top_p=1e-9)
    one, again, other = [await ask(temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert one == again != other


async def test_stop_strings_end_an_answer_and_are_not_shown(client: openai.AsyncOpenAI) -> None:
    whole = (await client.chat.completions.create(model=ENDPOINT, messages=HELLO, max_tokens=40)).choices[0]
    stop = (whole.message.content or "")[20:24]
    cut = (await client.chat.completions.create(model=ENDPOINT, messages=HELLO, max_tokens=40, stop=[stop])).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == (whole.message.content or "").split(stop)[0]


async def test_completions_and_models(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=ENDPOINT, prompt="Once upon", max_tokens=5)
    assert (answer.object, answer.usage and answer.usage.completion_tokens) == ("text_completion", 5)
    assert [model.id async for model in client.models.list()] == [ENDPOINT]
    assert (await client.models.retrieve(ENDPOINT)).id == ENDPOINT
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-5")


async def test_several_prompts_are_answered_together(server: ServerProcess) -> None:
    """More than are under way at once or may wait: a request is taken whole."""
    url, prompts = f"{server.url}/v1/completions", ["Once upon", "A", "It was", "Hello", "Why", "No"]
    alone = [(await post(url, {"prompt": each, "max_tokens": 30}))[1] for each in prompts]
    status, body = await post(url, {"prompt": prompts, "max_tokens": 30})
    assert status == 200, body
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert [choice["text"] for choice in body["choices"]] == [each["choices"][0]["text"] for each in alone]
    assert body["usage"]["total_tokens"] == sum(each["usage"]["total_tokens"] for each in alone)
    asked = asyncio.create_task(post(url, {"prompt": prompts[:2], "max_tokens": 220}))
    try:
        await eventually(lambda: _both_at_work(server))
    finally:
        await asked
    status, body = await post(url, {"prompt": ["A", "word " * 400], "max_tokens": 1})
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


async def _both_at_work(server: ServerProcess) -> bool:
    return await _metric(server, "finetune_server_requests_running") == 2


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"model": "gpt-5"}, 404, "'router' only"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "Hello"}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "messages.0"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "\ud800"}]}]}, 400, "surrogate"),
        ({"\ud800": 1}, 400, "not supported"),
        ({"messages": [{"role": "user", "content": "word " * 400}]}, 400, "context is 256 tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 2}, 400, "n: "),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"tools": [{"type": "function"}]}, 400, "tools: not supported"),
        ({"logprobs": True}, 400, "logprobs: not supported"),
        ({"stream": "yes"}, 400, "stream"),
    ],
)
async def test_wrong_requests_are_refused_in_openai_s_form(
    server: ServerProcess, change: dict[str, Any], status: int, named: str
) -> None:
    request = {"model": ENDPOINT, "messages": HELLO, "max_tokens": 1} | change
    got, body = await post(f"{server.url}/v1/chat/completions", request)
    assert (got, body["error"]["type"]) == (status, "invalid_request_error"), body
    assert named in body["error"]["message"]


@pytest.mark.parametrize(("raw", "status"), [(b"{", 400), (b"[]", 400), (b"[" * 100_000, 400), (b"", 400)])
async def test_a_body_that_is_no_request(server: ServerProcess, raw: bytes, status: int) -> None:
    got, body = await post(f"{server.url}/v1/chat/completions", None, raw=raw)
    assert (got, body["error"]["type"]) == (status, "invalid_request_error")


async def test_a_huge_body_is_refused(server: ServerProcess) -> None:
    got, body = await post(f"{server.url}/v1/chat/completions", None, raw=b" " * (17 << 20))
    assert (got, "larger than" in body["error"]["message"]) == (413, True)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_prompt_of_10_mb_costs_next_to_nothing(server: ServerProcess, path: str) -> None:
    """Below the limit of bodies, and far above any context: it is not tokenized to find that out."""
    text = "word " * 2_000_000
    request = {"messages": [{"role": "user", "content": text}]} if path == "chat/completions" else {"prompt": text}
    spent = server.cpu_seconds
    got, body = await post(f"{server.url}/v1/{path}", request)
    assert (got, body["error"]["code"]) == (400, "context_length_exceeded")
    assert "the prompt has 10000000 characters; this model's context is 256 tokens" in body["error"]["message"]
    assert server.cpu_seconds - spent < 1.5, "to tokenize it takes several times as long"
    assert await _metric(server, "finetune_server_requests_in_flight") == 0


async def test_paths_of_other_tasks_and_unknown_ones(server: ServerProcess) -> None:
    got, body = await post(f"{server.url}/v1/classify", {"input": "x"})
    assert (got, "task is Chat" in body["error"]["message"]) == (404, True)
    got, body = await post(f"{server.url}/v1/embeddings", {"input": "x"})
    assert (got, body["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("line", ["POST /v1/chat/completions HTTP/1.1", "SECRET", "GET / HTTP/9"])
async def test_what_is_no_http_is_refused_in_the_same_form(server: ServerProcess, line: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"{line}\r\nAuthorization : SECRET\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), timeout=HANGS_S)
    writer.close()
    assert answer.split(b" ")[1] == b"400"
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}
    assert b"SECRET" not in answer
    assert "SECRET" not in server.log


async def test_a_wrong_method_is_told_the_right_one(server: ServerProcess) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/v1/chat/completions") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_more_than_may_wait_are_told_to_come_back(server: ServerProcess) -> None:
    """Two at work, two waiting, the others refused at once."""
    request = {"messages": HELLO, "max_tokens": 200}
    answers = await asyncio.gather(*(post(f"{server.url}/v1/chat/completions", request) for _ in range(8)))
    statuses = sorted(status for status, _ in answers)
    assert statuses == [200] * 4 + [429] * 4
    refused = next(body for status, body in answers if status == 429)
    assert refused["error"]["type"] == "rate_limit_error"


async def test_a_short_answer_does_not_wait_for_a_long_one(server: ServerProcess) -> None:
    url = f"{server.url}/v1/chat/completions"
    long = asyncio.create_task(post(url, {"messages": HELLO, "max_tokens": 220}))
    await eventually(lambda: _metric(server, "finetune_server_requests_in_flight"))
    status, _ = await post(url, {"messages": HELLO, "max_tokens": 2})
    assert (status, long.done()) == (200, False)
    assert (await long)[0] == 200


async def test_answers_in_company_are_those_alone(server: ServerProcess) -> None:
    """Greedy and drawn, with a stop string and without, streamed and whole, twice as many as are under way at once."""
    url = f"{server.url}/v1/chat/completions"
    drawn = {"temperature": 1.2, "seed": 5}
    requests = [
        {"messages": [{"role": "user", "content": "word " * words}], "max_tokens": tokens} | options
        for words, tokens, options in ((1, 60, {}), (90, 12, drawn), (20, 40, {"stop": "e"}), (9, 50, drawn))
    ]
    alone = [(await post(url, request))[1]["choices"][0] for request in requests]
    assert len({choice["message"]["content"] for choice in alone}) == len(alone)
    together = await asyncio.gather(*(post(url, request) for request in requests))
    assert [body["choices"][0] for _, body in together] == alone


async def test_what_the_model_works_on_can_be_seen(server: ServerProcess) -> None:
    url = f"{server.url}/v1/chat/completions"
    asked = [asyncio.create_task(post(url, {"messages": HELLO, "max_tokens": 220})) for _ in range(3)]
    try:
        deadline = asyncio.get_running_loop().time() + 30
        while await _metric(server, "finetune_server_requests_running") < 2:
            assert asyncio.get_running_loop().time() < deadline, "two of three are under way"
        assert await _metric(server, "finetune_server_requests_waiting") == 1
        while not await _metric(server, "finetune_server_kept_tokens"):
            assert asyncio.get_running_loop().time() < deadline
    finally:
        await asyncio.gather(*asked)
    assert await _metric(server, "finetune_server_requests_running") == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_ends_the_generation(server: ServerProcess, stream: bool) -> None:
    abandoned = await _metric(server, "finetune_server_abandoned_requests_total")
    generated = await _metric(server, "finetune_server_generated_tokens_total")
    request = {"messages": HELLO, "max_tokens": 220, "stream": stream}
    async with aiohttp.ClientSession() as session:
        asking = session.post(f"{server.url}/v1/chat/completions", json=request)
        if stream:
            answer = await asking
            await answer.content.readline()
            answer.close()
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asking, timeout=0.2)
    for _ in range(100):
        if await _metric(server, "finetune_server_abandoned_requests_total") > abandoned:
            break
        await asyncio.sleep(0.02)
    assert await _metric(server, "finetune_server_abandoned_requests_total") == abandoned + 1
    assert await _metric(server, "finetune_server_requests_in_flight") == 0
    assert await _metric(server, "finetune_server_generated_tokens_total") < generated + 200
    status, _ = await post(f"{server.url}/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})
    assert status == 200


async def test_a_client_that_reads_slowly_holds_up_nobody(server: ServerProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = json.dumps({"messages": HELLO, "max_tokens": 200, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
    assert await reader.readexactly(1) == b"H"
    for _ in range(3):
        status, _ = await post(f"{server.url}/v1/chat/completions", {"messages": HELLO, "max_tokens": 2})
        assert status == 200
        await reader.readexactly(1)
    writer.close()
    for _ in range(100):
        if await _metric(server, "finetune_server_requests_in_flight") == 0:
            break
        await asyncio.sleep(0.05)
    assert await _metric(server, "finetune_server_requests_in_flight") == 0, "nothing of it stays"


async def test_probes_are_ready_to_be_sent(server: ServerProcess) -> None:
    _, text = await get(f"{server.url}/finetune/probes")
    probes = json.loads(text)["probes"]
    assert len(probes) == 3
    assert {probe["label"] for probe in probes} == {"movies"}
    status, _ = await post(server.url + probes[0]["path"], probes[0]["request"])
    assert (status, probes[0]["request"]["model"]) == (200, ENDPOINT)
    _, text = await get(f"{server.url}/finetune/probes?offset=1&limit=1")
    assert json.loads(text) == {"probes": [probes[1]], "total": 3}
    status, _ = await get(f"{server.url}/finetune/probes?limit=0")
    assert status == 400


async def test_metrics_and_the_access_log_tell_what_was_served(server: ServerProcess) -> None:
    await post(f"{server.url}/v1/chat/completions", {"messages": HELLO, "max_tokens": 3})
    _, text = await get(f"{server.url}/metrics")
    assert 'finetune_server_requests_total{code="200",route="/v1/chat/completions"}' in text
    assert 'finetune_server_info{endpoint="router",task="Chat",uid="uid-7",version="router-7"} 1.0' in text
    assert "finetune_server_ready 1.0" in text
    assert VersionReference(name="router-7").name in server.log
    line = server.access_lines()[-1]
    assert (line["path"], line["status"], line["completion_tokens"]) == ("/v1/chat/completions", 200, 3)


async def _metric(server: ServerProcess, name: str) -> float:
    _, text = await get(f"{server.url}/metrics")
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
