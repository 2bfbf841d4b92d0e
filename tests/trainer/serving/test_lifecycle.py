"""A server from its start to its end: readiness, what ends it before, and a graceful stop."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from demo import assets
from peft import LoraConfig, get_peft_model
from tests.local.eventually import eventually
from tests.patience import HANGS_S
from tests.trainer.serving.server_process import ENDPOINT, ServerProcess, order_for, post, publish, serving
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from finetune_api.results import ExitCode

HELLO: Any = [{"role": "user", "content": "Hello"}]


async def readiness(session: aiohttp.ClientSession, server: ServerProcess) -> tuple[int, str]:
    """(status, state) of /readyz."""
    async with session.get(f"{server.url}/readyz") as answer:
        return answer.status, (await answer.json())["state"]


async def drains(session: aiohttp.ClientSession, server: ServerProcess) -> None:
    """Wait until it says so."""

    async def said() -> bool:
        return await readiness(session, server) == (503, "Draining")

    await eventually(said)


async def states_until_ready(server: ServerProcess, *, seconds: float = HANGS_S) -> list[tuple[int, str]]:
    """(status, state) of /readyz in the order in which they were seen; /healthz is 200 all the while."""
    seen: list[tuple[int, str]] = []
    deadline = time.monotonic() + seconds
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            try:
                found = await readiness(session, server)
                async with session.get(f"{server.url}/healthz") as answer:
                    assert answer.status == 200
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
                continue
            if not seen or seen[-1] != found:
                seen.append(found)
            if found[0] == 200:
                return seen
            await asyncio.sleep(0.005)
    raise AssertionError(server.log)


async def test_ready_comes_after_an_answer_and_sigterm_lets_clients_finish(
    small_chat: dict[str, Any], tmp_path: Path
) -> None:
    server = ServerProcess(folder=tmp_path, order=order_for(small_chat, folder=tmp_path), python=sys.executable)
    url = f"{server.url}/v1/chat/completions"
    try:
        server.start()
        states = await states_until_ready(server)
        assert states[0] == (503, "Loading")
        assert states[-1] == (200, "Ready")
        assert "ready: the model has answered" in server.log

        async with aiohttp.ClientSession() as session:
            request = {"model": ENDPOINT, "messages": HELLO, "max_tokens": 230, "stream": True}
            streamed = await session.post(url, json=request)
            await streamed.content.readline()
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            await drains(session, server)
            status, _ = await post(url, {"messages": HELLO, "max_tokens": 2})
            assert status == 200, "a client that has not heard yet is served"
            assert (await streamed.read()).endswith(b"data: [DONE]\n\n")
        assert await asyncio.to_thread(server.wait) == ExitCode.DONE
    finally:
        server.stop()
    assert "cut off" not in server.log
    assert "Traceback" not in server.log


async def test_sigterm_while_it_loads_ends_it_at_once(small_chat: dict[str, Any], tmp_path: Path) -> None:
    server = ServerProcess(
        folder=tmp_path, order=order_for(small_chat, folder=tmp_path, graceSeconds=0), python=sys.executable
    )
    try:
        server.start()
        assert server.process is not None
        while ": serving router " not in server.log:
            assert server.process.poll() is None, server.log
            await asyncio.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, seconds=HANGS_S) == ExitCode.DONE, server.log
    finally:
        server.stop()
    assert "ready" not in server.log


@pytest.mark.parametrize("wrong", ["digest", "missing", "base", "runtime", "order"])
def test_what_cannot_be_served_ends_it_with_a_reason(small_chat: dict[str, Any], tmp_path: Path, wrong: str) -> None:
    order = order_for(small_chat, folder=tmp_path)
    artifact = dict(order["artifact"])
    match wrong:
        case "digest":
            order |= {"artifact": artifact | {"digest": "sha256:" + "1" * 64}}
            expected = (ExitCode.BAD_CONFIGURATION, "ArtifactChanged", "not the model that was recorded")
        case "missing":
            order |= {"artifact": artifact | {"uri": artifact["uri"] + "-gone"}}
            expected = (ExitCode.INPUT_NOT_FOUND, "ArtifactTorn", "model-gone is gone or damaged")
        case "base":
            order |= {"base": order["base"] | {"digest": "sha256:" + "2" * 64}}
            expected = (ExitCode.BAD_CONFIGURATION, "BaseModelChanged", "was changed")
        case "runtime":
            order |= {"runtime": "FastAPI"}
            expected = (ExitCode.BAD_CONFIGURATION, "BadRunFile", "runtime FastAPI does not serve task Chat")
        case _:
            order |= {"colour": "blue"}
            expected = (ExitCode.BAD_CONFIGURATION, "BadRunFile", "Serve.colour")
    server = ServerProcess(folder=tmp_path, order=order)
    try:
        server.start()
        assert server.wait() == expected[0], server.log
    finally:
        server.stop()
    assert server.last_words["reason"] == expected[1]
    assert expected[2] in server.last_words["message"]


def test_an_artifact_whose_files_are_no_model(small_base: Path, tmp_path: Path) -> None:
    """The digest is right, and still it cannot be loaded: the process says so and ends."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(str(small_base)),
        AutoTokenizer.from_pretrained(str(small_base)),
    )
    served = publish(
        model, tokenizer, folder=tmp_path / "stored", base=small_base, task="Chat", companions={"config.json": "{}"}
    )
    server = ServerProcess(folder=tmp_path, order=order_for(served, folder=tmp_path))
    try:
        server.start()
        assert server.wait() == ExitCode.BAD_CONFIGURATION, server.log
    finally:
        server.stop()
    assert server.last_words["reason"] == "UnsupportedModel"


async def test_smollm2_answers_for_real(tmp_path: Path) -> None:
    """A real model with an adapter that changes nothing yet, as it is before the first step of training."""
    base = assets.smollm2_folder()
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(str(base)), LoraConfig(r=2, target_modules="all-linear")
    )
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    served = publish(model, tokenizer, folder=tmp_path / "stored", base=base, task="Chat", companions={})
    del model
    with serving(tmp_path, order_for(served, folder=tmp_path)) as server:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        _, answer = await post(f"{server.url}/v1/chat/completions", {"messages": question, "max_tokens": 24})
    choice = answer["choices"][0]
    assert "Paris" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop", "it ends its turn by itself"


async def streamed(url: str, document: dict[str, Any]) -> list[str]:
    """The text of each part of a completion."""
    async with aiohttp.ClientSession() as session, session.post(url, json=document | {"stream": True}) as answer:
        lines = [line.decode().strip().removeprefix("data: ") async for line in answer.content if line.strip()]
    assert lines.pop() == "[DONE]"
    return [json.loads(line)["choices"][0]["text"] for line in lines]


async def test_seq2seq_generates(small_base: Path, tmp_path: Path) -> None:
    """A random T5: the text of transformers' own loop, whole and streamed; stops and limits as elsewhere."""
    tokenizer = AutoTokenizer.from_pretrained(str(small_base))
    torch.manual_seed(1)
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    start = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **size, **start)).eval()
    served = publish(model, tokenizer, folder=tmp_path / "stored", base=small_base, task="Seq2Seq", companions={})
    prompt = tokenizer("translate this", return_tensors="pt")
    expected = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, 1:]
    asked = {"prompt": "translate this", "max_tokens": 12}
    with serving(tmp_path, order_for(served, folder=tmp_path, contextTokens=16)) as server:
        path = f"{server.url}/v1/completions"
        _, answer = await post(path, asked)
        text = answer["choices"][0]["text"]
        pieces = await streamed(path, asked)
        _, stopped = await post(path, asked | {"stop": text[4:6]})
        status, refused = await post(path, asked | {"prompt": "this " * 17})
        other, unsupported = await post(path, asked | {"suffix": "end", "echo": True})
    assert text == tokenizer.decode(expected, skip_special_tokens=True)
    assert answer["usage"]["completion_tokens"] == len(expected)
    assert "".join(pieces) == text
    assert (stopped["choices"][0]["text"], stopped["choices"][0]["finish_reason"]) == (
        text[: text.find(text[4:6])],
        "stop",
    )
    assert (status, refused["error"]["code"]) == (400, "context_length_exceeded")
    assert "tokens: shorten the prompt" in refused["error"]["message"], "the answer has room of its own"
    assert other == 400
    assert "suffix, echo: not supported" in unsupported["error"]["message"]
