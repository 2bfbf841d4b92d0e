"""Shadow and probes: the same prompt to candidate and stable, off the client's path.

A bounded number of comparisons is under way at a time; what does not fit is dropped and counted. Probes are held-out
prompts that the candidate's own server hands out. A prompt counts once in a comparison, however many epochs that takes;
under an order to repeat them it counts again for what has changed since it was first asked, and for nothing else: one
that the candidate has always answered worse is no news, however often it is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from finetune_api.routes import Routes, ShadowOrder
from finetune_gateway.answers import Answer, Measures, measures, whole
from finetune_gateway.client_stream import whole_body
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.openai_format import read_object, with_model, without_stream
from finetune_gateway.quality import fault_of_answer, normalised
from finetune_gateway.tally import Tally

logger = logging.getLogger(__name__)
MIRRORED_HEADER = "X-Finetune-Mirrored"
"""Of what no client waits for: `shadow` or `probe`. A server's own log and statistics can leave such requests out."""
_PROBES_PATH = "/finetune/probes"


@dataclass(kw_only=True)
class Comparator:
    """Sends prompts to candidate and stable, and counts how they compare."""

    live: LiveRoutes
    tally: Tally
    session: aiohttp.ClientSession
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _first: dict[tuple[int, bytes], Measures | None] = field(default_factory=dict)
    """What a prompt of a comparison came to when it was first asked; None while it is."""

    def offer(
        self, *, path: str, body: bytes, variant: str, stable: Answer, json_expected: bool, limited: bool
    ) -> None:
        """Maybe copy to the candidate a request that stable has just answered, or failed. Returns at once."""
        routes, order = self._ordered()
        if routes is None or order is None or variant != order.stable:
            return
        if random.random() * 100.0 >= order.percent:  # noqa: S311 - sampling
            return
        counts = self.tally.shadow(routes.epoch)
        counts.sampled += 1
        if len(self._tasks) >= order.max_in_flight:
            counts.dropped += 1
            self.live.metrics.shadow.labels("dropped").inc()
            return
        if stable.seconds > order.timeout_seconds:
            stable = Answer(status=0, seconds=stable.seconds)  # the candidate is not waited for longer either

        def bad(answer: Answer) -> bool:
            return answer.failed or fault_of_answer(answer, json_expected=json_expected, limited=limited) is not None

        self._start(self._compare(routes=routes, order=order, path=path, body=body, stable=stable, bad=bad))

    async def probe(self) -> None:
        """Send probes at the ordered rate. Runs until cancelled."""
        prompts: list[dict[str, Any]] = []
        left: list[dict[str, Any]] = []
        fetched_for: int | None = None
        while True:
            routes, order = self._ordered()
            if routes is None or order is None or order.probe is None:
                await asyncio.sleep(0.2)
                continue
            since = self.live.compared_since
            if fetched_for != since:
                prompts = await self._fetch_probes(routes=routes, order=order)
                fetched_for = since if prompts else None
                self._first = {key: measures for key, measures in self._first.items() if key[0] == since}
                left = _shuffled([each for each in prompts if _key_of(_body_of(each), since=since) not in self._first])
            elif not left and order.probe.repeat:
                left = _shuffled(prompts)
            await asyncio.sleep(1.0 / order.probe.rate_per_second if left else 2.0)
            if left and len(self._tasks) < order.max_in_flight:
                self._start(self._probe_one(routes=routes, order=order, prompt=left.pop(), since=since))

    def _ordered(self) -> tuple[Routes | None, ShadowOrder | None]:
        """The routes in force, and what they want compared, where both versions have answered before."""
        routes = self.live.current
        order = routes.shadow if routes is not None else None
        if routes is None or order is None:
            return routes, None
        return routes, order if {order.candidate, order.stable} <= self.live.heard else None

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
        self,
        *,
        routes: Routes,
        order: ShadowOrder,
        path: str,
        body: bytes,
        stable: Answer,
        bad: Callable[[Answer], bool],
    ) -> None:
        copied = without_stream(body=body)
        candidate = await self._ask(
            "shadow", routes=routes, variant=order.candidate, path=path, body=copied, order=order
        )
        found = measures(candidate, stable, bad=bad, latency_limit=routes.judging.latency_limit_seconds)
        self._count(found, routes=routes, order=order, source="Shadow")
        self.live.metrics.shadow.labels("completed").inc()

    async def _probe_one(self, *, routes: Routes, order: ShadowOrder, prompt: dict[str, Any], since: int) -> None:
        path, label = str(prompt["path"]), prompt.get("label")
        key = _key_of(_body_of(prompt), since=since)
        body = with_model(document=prompt["request"], model=routes.model)
        asked_before = key in self._first
        first = self._first.setdefault(key, None)
        stable, candidate = await asyncio.gather(
            self._ask("probe", routes=routes, variant=order.stable, path=path, body=body, order=order),
            self._ask("probe", routes=routes, variant=order.candidate, path=path, body=body, order=order),
        )

        def bad(answer: Answer) -> bool:
            if not answer.failed and isinstance(label, str):
                return normalised(answer.text or "") != normalised(label)
            return answer.failed or fault_of_answer(answer, json_expected=False, limited=True) is not None

        found = measures(candidate, stable, bad=bad, latency_limit=routes.judging.latency_limit_seconds)
        if not asked_before:
            self._first[key] = found
            self._count(found, routes=routes, order=order, source="Probe")
        elif first is not None:
            self._count(_changes(first=first, now=found), routes=routes, order=order, source="Probe")

    async def _ask(
        self,
        mirrored: Literal["shadow", "probe"],
        *,
        routes: Routes,
        variant: str,
        path: str,
        body: bytes,
        order: ShadowOrder,
    ) -> Answer:
        began = time.monotonic()
        try:
            async with self.session.post(
                routes.variants[variant].url + path,
                data=body,
                headers={"Content-Type": "application/json", MIRRORED_HEADER: mirrored},
                timeout=aiohttp.ClientTimeout(total=order.timeout_seconds),
                allow_redirects=False,  # as for clients
            ) as answer:
                return whole(status=answer.status, body=await whole_body(answer), seconds=time.monotonic() - began)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Answer(status=0, seconds=time.monotonic() - began)

    def _count(self, found: Measures, *, routes: Routes, order: ShadowOrder, source: str) -> None:
        for metric, (candidate_bad, stable_bad) in found.items():
            key = (routes.epoch, source, order.candidate, order.stable, metric)
            self.tally.pair(key).add(candidate_bad=candidate_bad, stable_bad=stable_bad)

    async def _fetch_probes(self, *, routes: Routes, order: ShadowOrder) -> list[dict[str, Any]]:
        """Held-out requests from the candidate's server."""
        try:
            url = routes.variants[order.candidate].url + _PROBES_PATH
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=10)) as answer:
                if answer.status != 200:
                    return []
                return held_out(await whole_body(answer))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return []


def held_out(body: bytes) -> list[dict[str, Any]]:
    """What a version hands out: `{"probes": [{path, request, label?}]}`, each once. Raises ValueError for no JSON."""
    prompts = (read_object(body) or {}).get("probes")
    found = [each for each in prompts if isinstance(each, dict)] if isinstance(prompts, list) else []
    asked = [each for each in found if isinstance(each.get("path"), str) and isinstance(each.get("request"), dict)]
    return list({_body_of(each): each for each in asked}.values())


def _changes(*, first: Measures, now: Measures) -> Measures:
    """Who has got worse since: the difference of the two answers now, against their difference then."""
    changes: Measures = {}
    for metric, (candidate_bad, stable_bad) in now.items():
        candidate_was, stable_was = first.get(metric, (candidate_bad, stable_bad))
        change = (candidate_bad - stable_bad) - (candidate_was - stable_was)
        changes[metric] = (change > 0, change < 0)
    return changes


def _body_of(prompt: dict[str, Any]) -> bytes:
    return json.dumps(prompt["request"]).encode()


def _key_of(body: bytes, *, since: int) -> tuple[int, bytes]:
    return since, hashlib.sha256(body).digest()


def _shuffled(prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return random.sample(prompts, k=len(prompts))
