"""Shadow and probes: the same prompt to candidate and stable, off the client's path.

A bounded number of comparisons is under way at a time; what does not fit is dropped and counted. Probes are held-out
prompts that the candidate's own server hands out; a prompt counts once per epoch.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field

import aiohttp

from finetune_api.routes import Routes, ShadowOrder
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.openai_format import answer_text, without_stream
from finetune_gateway.quality import fault_of, normalised, similarity
from finetune_gateway.tally import Tally

logger = logging.getLogger(__name__)
_PROBES_PATH = "/finetune/probes"
_MAXIMUM_TEXT = 100_000


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One variant's answer to one prompt."""

    status: int
    """0: no answer."""
    text: str | None
    seconds: float

    @property
    def failed(self) -> bool:
        """No usable answer."""
        return self.status == 0 or self.status >= 500


@dataclass(kw_only=True)
class Comparator:
    """Sends prompts to candidate and stable, and counts how they compare."""

    live: LiveRoutes
    tally: Tally
    session: aiohttp.ClientSession
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _probed: set[tuple[int, bytes]] = field(default_factory=set)

    def offer(self, *, path: str, body: bytes, variant: str, stable: Answer, json_expected: bool) -> None:
        """Maybe copy a request that stable has just answered to the candidate. Returns at once."""
        routes = self.live.current
        order = routes.shadow if routes is not None else None
        if routes is None or order is None or variant != order.stable:
            return
        if random.random() * 100.0 >= order.percent:  # noqa: S311 - sampling
            return
        counts = self.tally.shadow(routes.epoch)
        counts.sampled += 1
        if len(self._tasks) >= order.max_in_flight:
            counts.dropped += 1
            return
        work = self._compare(
            routes=routes, order=order, path=path, body=body, stable=stable, json_expected=json_expected
        )
        self._start(work)

    async def probe(self) -> None:
        """Send probes at the ordered rate. Runs until cancelled."""
        prompts: list[dict[str, object]] = []
        fetched_for: tuple[int, str] | None = None
        while True:
            routes = self.live.current
            order = routes.shadow if routes is not None else None
            if routes is None or order is None or order.probe is None:
                await asyncio.sleep(0.2)
                continue
            if fetched_for != (routes.epoch, order.candidate):
                prompts = await self._fetch_probes(routes=routes, order=order)
                fetched_for = (routes.epoch, order.candidate) if prompts else None
                self._probed = {key for key in self._probed if key[0] == routes.epoch}
            await asyncio.sleep(1.0 / order.probe.rate_per_second if prompts else 2.0)
            while prompts and len(self._tasks) < order.max_in_flight:
                prompt = prompts.pop()
                body = json.dumps(prompt["request"]).encode()
                key = (routes.epoch, hashlib.sha256(body).digest())
                if key not in self._probed:
                    self._probed.add(key)
                    self._start(self._probe_one(routes=routes, order=order, prompt=prompt, body=body))
                    break

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a comparison failed", exc_info=task.exception())

    async def _compare(
        self, *, routes: Routes, order: ShadowOrder, path: str, body: bytes, stable: Answer, json_expected: bool
    ) -> None:
        copied = without_stream(body=body)
        candidate = await self._ask(routes=routes, variant=order.candidate, path=path, body=copied, order=order)
        self._count(
            routes=routes, order=order, source="Shadow", candidate=candidate, stable=stable, json_expected=json_expected
        )

    async def _probe_one(self, *, routes: Routes, order: ShadowOrder, prompt: dict[str, object], body: bytes) -> None:
        path = str(prompt["path"])
        label = prompt.get("label")
        stable, candidate = await asyncio.gather(
            self._ask(routes=routes, variant=order.stable, path=path, body=body, order=order),
            self._ask(routes=routes, variant=order.candidate, path=path, body=body, order=order),
        )
        self._count(
            routes=routes,
            order=order,
            source="Probe",
            candidate=candidate,
            stable=stable,
            json_expected=False,
            label=label if isinstance(label, str) else None,
        )

    async def _ask(self, *, routes: Routes, variant: str, path: str, body: bytes, order: ShadowOrder) -> Answer:
        began = time.monotonic()
        try:
            async with self.session.post(
                routes.variants[variant].url + path,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=order.timeout_seconds),
            ) as answer:
                text = answer_text(body=await answer.content.read(_MAXIMUM_TEXT * 8))
                return Answer(status=answer.status, text=text, seconds=time.monotonic() - began)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Answer(status=0, text=None, seconds=time.monotonic() - began)

    def _count(
        self,
        *,
        routes: Routes,
        order: ShadowOrder,
        source: str,
        candidate: Answer,
        stable: Answer,
        json_expected: bool,
        label: str | None = None,
    ) -> None:
        def bad(answer: Answer) -> bool:
            if answer.failed or answer.text is None:
                return True
            if label is not None:
                return normalised(answer.text) != normalised(label)
            return fault_of(text=answer.text, json_expected=json_expected) is not None

        limit = routes.judging.latency_limit_seconds
        measures = {
            "error_rate": (candidate.failed, stable.failed),
            "quality": (bad(candidate), bad(stable)),
        }
        if limit is not None:
            measures["latency_seconds"] = (
                candidate.failed or candidate.seconds > limit,
                stable.failed or stable.seconds > limit,
            )
        for metric, (candidate_bad, stable_bad) in measures.items():
            key = (routes.epoch, source, order.candidate, order.stable, metric)
            self.tally.pair(key).add(candidate_bad=candidate_bad, stable_bad=stable_bad)
        if source == "Shadow":
            counts = self.tally.shadow(routes.epoch)
            counts.completed += 1
            one, two = (candidate.text or "")[:_MAXIMUM_TEXT], (stable.text or "")[:_MAXIMUM_TEXT]
            counts.agreed += normalised(one) == normalised(two)
            counts.similarity_sum += similarity(first=one, second=two)

    async def _fetch_probes(self, *, routes: Routes, order: ShadowOrder) -> list[dict[str, object]]:
        """Held-out requests from the candidate's server: `[{path, request, label?}]`, in random order."""
        try:
            url = routes.variants[order.candidate].url + _PROBES_PATH
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=10)) as answer:
                if answer.status != 200:
                    return []
                prompts: list[dict[str, object]] = (await answer.json())["probes"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError):
            return []
        random.shuffle(prompts)
        return prompts
