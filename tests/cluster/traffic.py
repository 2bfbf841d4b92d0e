"""Clients of an endpoint that never stop: the real `openai` package, and a record of who answered."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import urllib3
from tests.harness import wait_until
from tests.patience import HANGS_S

_AT_ONCE = 4
"""Unanswered requests beyond which it waits with the next: on a slow machine more would measure the machine."""


def wait_reachable(url: str) -> None:
    """Wait until a Service leads to its pods: kube-proxy follows them within a second or two."""

    def answers() -> bool:
        try:
            return urllib3.request("GET", f"{url}/v1/models", retries=False, timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    wait_until(answers, what=f"an answer of {url}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answered request."""

    user: str
    sent: float
    """Seconds since 1970."""
    seconds: float
    answer_id: str
    """Tells a client nothing; the log of the gateway says which version it was (`GatewayLogs.answered`)."""
    retries: int
    """Times that the client asked again by itself."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One request that the client gave up."""

    user: str
    sent: float
    ended: float
    """Seconds since 1970."""
    error: str


@dataclass(kw_only=True)
class Traffic:
    """Requests at a steady rate while they are answered, each of a user of its own, every second one streamed."""

    url: str
    model: str
    per_second: float = 1.0
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _bursts: list[Sequence[str]] = field(default_factory=list)

    @contextmanager
    def flowing(self) -> Iterator[Traffic]:
        """Until the block ends. The thread has the network of the one that starts it."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(timeout=HANGS_S)

    def wait(self, *, more: int, timeout_s: float = HANGS_S) -> None:
        """Wait for more answers."""
        wanted, deadline = len(self.answers) + more, time.monotonic() + timeout_s
        while len(self.answers) < wanted:
            assert time.monotonic() < deadline, f"{wanted - len(self.answers)} answers short: {self.failures[-3:]}"
            time.sleep(0.2)

    def burst(self, users: Sequence[str]) -> None:
        """A request of each of these users, all at once and besides the others."""
        self._bursts.append(users)

    async def _run(self) -> None:
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=HANGS_S)
        async with asyncio.TaskGroup() as group:
            number = 0
            while not self._stop.is_set():
                if len(self._under_way) >= _AT_ONCE and not self._bursts:
                    await asyncio.sleep(0.1)
                    continue
                burst = self._bursts.pop() if self._bursts else ()
                for user in (f"user-{number}", *burst):
                    asked = group.create_task(self._ask(client, user=user, stream=bool(number % 2)))
                    self._under_way.add(asked)
                    asked.add_done_callback(self._under_way.discard)
                number += 1
                await asyncio.sleep(1 / self.per_second)

    async def _ask(self, client: openai.AsyncOpenAI, *, user: str, stream: bool) -> None:
        began, sent = time.monotonic(), time.time()
        question: Any = [{"role": "user", "content": f"Say a number greater than that of {user}."}]
        request: Any = {"model": self.model, "messages": question, "max_tokens": 3, "user": user}
        try:
            raw = await client.chat.completions.with_raw_response.create(**request, stream=stream)
            answer: Any = raw.parse()
            if stream:
                ends = [choice.finish_reason async for chunk in answer for choice in chunk.choices]
            else:
                ends = [answer.choices[0].finish_reason]
            assert ends[-1] in ("length", "stop"), f"it ended with {ends[-1:]}"
        except (openai.OpenAIError, httpx2.HTTPError, AssertionError) as error:
            words = f"{type(error).__name__}: {error}"
            self.failures.append(Failure(user=user, sent=sent, ended=time.time(), error=words))
            return
        answer_id = raw.headers["x-finetune-answer-id"]
        seconds = time.monotonic() - began
        retries = raw.retries_taken
        self.answers.append(Answer(user=user, sent=sent, seconds=seconds, answer_id=answer_id, retries=retries))
