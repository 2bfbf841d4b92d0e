"""Waits for each version's first answer. What goes wrong before it says that servers are still starting (a node came
back, a name is not known yet), and nothing about the version: nothing is counted of it until then.
"""

from __future__ import annotations

import asyncio
import time

import aiohttp

from finetune_gateway.live_routes import LiveRoutes

_READY_PATH = "/readyz"
_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_PAUSE_SECONDS = 0.25


async def wait_for_first_answers(*, live: LiveRoutes, session: aiohttp.ClientSession, longest_seconds: float) -> None:
    """Ask all that have not answered. Runs until cancelled. What is silent for `longest_seconds` counts from then on:
    a version that never answers is a failure."""
    since: dict[str, float] = {}
    while True:
        live.changed.clear()
        variants = live.current.variants if live.current is not None else {}
        since = {uid: began for uid, began in since.items() if uid in variants and uid not in live.heard}
        for uid, variant in variants.items():
            if uid not in live.heard:
                began = since.setdefault(uid, time.monotonic())
                if time.monotonic() - began >= longest_seconds or await _answers(session, variant.url):
                    live.heard.add(uid)
        live.asked = live.current is not None
        silent = live.current is not None and not live.heard.issuperset(live.current.variants)
        try:
            async with asyncio.timeout(_PAUSE_SECONDS if silent else None):
                await live.changed.wait()
        except TimeoutError:
            pass


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether its servers listen, and do not say that they load. vLLM has no such path, and listens when ready."""
    try:
        async with session.get(url + _READY_PATH, timeout=_TIMEOUT, allow_redirects=False) as answer:
            return answer.status != 503
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
