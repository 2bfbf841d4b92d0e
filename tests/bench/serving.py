"""`make bench-serving`: chats answered at once, ours beside transformers' and vLLM's own servers. Last line: one JSON.

Every server has SmolLM2-135M in fp32 on the same threads of the same CPU and answers the same greedy chats to 1, 4 and
16 clients, each of which asks again as soon as it is answered. Other load on the machine distorts times, so what counts
is tokens per second of the server's own processor time. Time to the first token is wall time, of the same requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil
import torch
from demo import assets
from tests.bench.gateway_processes import Server, running
from tests.harness.store import ROOT
from tests.local.gateway.conftest import free_port
from tests.trainer.serving.server_process import ENDPOINT, order_for, publish
from tests.unit.endpoint.test_vllm import full
from tests.vllm.installed import MEMORY_BYTES, THREADS, VARIABLES, vllm_python
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.run import MIDDLEWARE_FOLDER, ServeOrder
from finetune_operator.endpoint.serving.vllm import vllm_arguments
from finetune_trainer.serving.artifact import link_files
from finetune_trainer.store.storage import Storage

CLIENTS = (1, 4, 16)
ANSWERS = {1: 4, 4: 12, 16: 48}
"""For so many clients, so many answers are measured."""
TOKENS = 48
"""Of an answer at most."""
CONTEXT = 2048


@dataclass(frozen=True, kw_only=True)
class Round:
    """A server under one load."""

    tokens: int
    cpu_seconds: float
    wall_seconds: float
    first_token_seconds: float
    """The median."""
    answers: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Tokens per second of processor time."""
        return self.tokens / self.cpu_seconds


async def measure(server: Server, *, clients: int, questions: Sequence[str]) -> Round:
    """Ask all questions, so many at once."""
    found: dict[int, tuple[str, int, float]] = {}
    queue = iter(list(enumerate(questions)))
    began, spent = time.monotonic(), cpu_seconds(server)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def client() -> None:
            for number, question in queue:
                found[number] = await ask(session, server, question)

        await asyncio.gather(*(client() for _ in range(clients)))
    return Round(
        tokens=sum(tokens for _, tokens, _ in found.values()),
        cpu_seconds=cpu_seconds(server) - spent,
        wall_seconds=time.monotonic() - began,
        first_token_seconds=median(first for *_, first in found.values()),
        answers=tuple(found[number][0] for number in range(len(questions))),
    )


async def ask(session: aiohttp.ClientSession, server: Server, question: str) -> tuple[str, int, float]:
    """Text, tokens, and seconds to the first of them."""
    body: dict[str, Any] = {
        "model": ENDPOINT,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, tokens, first, began = "", 0, 0.0, time.monotonic()
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    async with session.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            more = "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
            first = first or (time.monotonic() - began if more else 0.0)
            text += more
    assert tokens > 0, "the server did not count its tokens"
    return text, tokens, first


def cpu_seconds(server: Server) -> float:
    """Of the server and what it started."""
    own = psutil.Process(server.process.pid)
    return sum(sum(each.cpu_times()[:2]) for each in [own, *own.children(recursive=True)])


# -- servers ----------------------------------------------------------------------------------------------------------


@contextmanager
def ours(served: dict[str, Any], *, folder: Path, code: Path = ROOT) -> Iterator[Server]:
    """`python -m finetune_trainer serve` with its defaults."""
    (folder / "run.json").write_text(json.dumps(order_for(served, folder=folder, contextTokens=CONTEXT)))
    port = free_port()
    variables = {
        "PYTHONPATH": f"{code / 'operator'}:{code / 'trainer_image'}",
        "FINETUNE_TERMINATION_LOG": str(folder / "termination"),
        "FINETUNE_SERVE_HOST": "127.0.0.1",
        "FINETUNE_SERVE_PORT": str(port),
        **THREADS,
    }
    command = [sys.executable, "-m", "finetune_trainer", "serve", "--run-file", str(folder / "run.json")]
    with _started("ours", command, port=port, folder=folder, environment=variables) as server:
        yield server


@contextmanager
def continuous_batching(model: Path, *, folder: Path) -> Iterator[Server]:
    """`transformers serve`, whose cache would take 13 GB by default. It calls its model as its folder is called."""
    port = free_port()
    (folder / ENDPOINT).symlink_to(model)
    command = [
        str(Path(sys.executable).parent / "transformers"), "serve", ENDPOINT, "--continuous-batching",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--device", "cpu",
        "--cb-num-blocks", "1024", "--cb-block-size", "32", "--cb-max-batch-tokens", "512",
    ]  # fmt: skip
    variables = {"HF_HUB_OFFLINE": "1", **THREADS}
    with _started("continuous-batching", command, port=port, folder=folder, environment=variables) as server:
        yield server


@contextmanager
def vllm(python: Path, *, folder: Path, own: Path) -> Iterator[Server]:
    """With the operator's own arguments, and what a CPU without bf16 needs besides."""
    port = free_port()
    version = full(contextTokens=CONTEXT)
    arguments = vllm_arguments(
        version=version, model_name=ENDPOINT, folder=str(own), gpus=0, memory_bytes=MEMORY_BYTES, port=port
    )
    path = {"PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(own / MIDDLEWARE_FOLDER)}
    variables = {**VARIABLES, **path}
    command = [str(python.parent / "vllm"), *arguments[1:], "--dtype", "float32", "--host", "127.0.0.1"]
    with _started("vllm", command, port=port, folder=folder, environment=variables) as server:
        yield server


def _started(name: str, command: list[str], *, port: int, folder: Path, environment: dict[str, str]) -> Any:
    return running(
        name=name, command=command, port=port, folder=folder, core=None, environment=environment, ready_seconds=900.0
    )


# -- the run ----------------------------------------------------------------------------------------------------------


def run(*, uv: str | None, before: Path | None, folder: Path) -> dict[str, Any]:
    """All figures."""
    base = assets.smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    served = publish(model, tokenizer, folder=folder / "stored", base=base, task="Chat", companions={})
    del model
    stored = Path(served["artifact"]["uri"].removeprefix("file://"))
    order = ServeOrder.model_validate(order_for(served, folder=folder))
    own = link_files(order, storage=Storage(locations=order.locations))
    contenders: dict[str, Any] = {
        "ours": lambda: ours(served, folder=folder),
    }
    if before is not None:
        contenders["before"] = lambda: ours(served, folder=folder, code=before)
    contenders |= {
        "transformers": lambda: continuous_batching(stored, folder=folder),
    }
    if uv is not None:
        python = vllm_python(uv)
        contenders["vllm"] = lambda: vllm(python, folder=folder, own=own)
    questions = [question for question, _ in assets.questions("All")]
    rounds: dict[str, dict[int, Round]] = {}
    for name, start in contenders.items():
        with ExitStack() as stack:
            server = stack.enter_context(start())
            asyncio.run(measure(server, clients=4, questions=questions[-4:]))  # a warm-up
            rounds[name] = {}
            for clients in CLIENTS:
                asked = questions[: ANSWERS[clients]]
                rounds[name][clients] = found = asyncio.run(measure(server, clients=clients, questions=asked))
                print(f"{name}, {clients} at once: {found.rate:.1f} tokens a processor second, {found.tokens} tokens in"
                      f" {found.wall_seconds:.1f} s, first token after {found.first_token_seconds * 1000:.0f} ms",
                      flush=True)  # fmt: skip
    return figures(rounds)


def figures(rounds: dict[str, dict[int, Round]]) -> dict[str, Any]:
    """As one object; what is ours has no prefix."""
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
    for name, by_clients in rounds.items():
        prefix = "" if name == "ours" else f"{name}_"
        for clients, each in by_clients.items():
            found[f"{prefix}tokens_per_cpu_s_{clients}"] = round(each.rate, 1)
            found[f"{prefix}first_token_ms_{clients}"] = round(1000 * each.first_token_seconds)
        if name != "ours":
            found[f"{name}_ratio_16"] = round(rounds["ours"][16].rate / by_clients[16].rate, 2)
            pairs = list(zip(rounds["ours"][16].answers, by_clients[16].answers, strict=True))
            found[f"{name}_same_answers"] = f"{sum(one == other for one, other in pairs)} of {len(pairs)}"
    alone, together = rounds["ours"][1].answers, rounds["ours"][16].answers
    found["same_alone_and_together"] = alone == together[: len(alone)]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", help="the program that installs vLLM; without it vLLM is left out")
    parser.add_argument("--before", type=Path, help="another checkout, whose server is measured as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run(uv=options.uv, before=options.before, folder=Path(temporary))))
