"""Tells the operator what this replica saw, once a second, and at once when routes changed or a breaker opened."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from pathlib import Path

import aiohttp

from finetune_gateway.config import GatewayConfig
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.peers import Peers
from finetune_gateway.tally import Tally
from finetune_http.lost_nodes import watched_socket

logger = logging.getLogger(__name__)
INTERVAL_SECONDS = 1.0
_POLL_SECONDS = 0.05


async def report(*, config: GatewayConfig, live: LiveRoutes, tally: Tally, metrics: Metrics, peers: Peers) -> None:
    """Report until cancelled. A report that fails loses nothing: the next one holds the same counts and more."""
    context = ssl.create_default_context(cafile=str(config.door_ca_file)) if config.door_ca_file else None
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context or True, socket_factory=watched_socket)
    ) as session:
        while True:
            mark = (live.epoch, len(tally.breakers))
            metrics.epoch.set(live.epoch)
            body = tally.observations(acknowledged_epoch=live.epoch).model_dump_json(by_alias=True)
            try:
                if config.observations_file is not None:
                    _replace(config.observations_file, body)
                elif config.door_url is not None:
                    peers.learn(await _post(session=session, config=config, url=config.door_url, body=body))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                metrics.reports_failed.inc()
                logger.warning("reporting to the operator: %s; trying again", error)
            for _ in range(round(INTERVAL_SECONDS / _POLL_SECONDS)):
                await asyncio.sleep(_POLL_SECONDS)
                if (live.epoch, len(tally.breakers)) != mark:
                    break


async def _post(*, session: aiohttp.ClientSession, config: GatewayConfig, url: str, body: str) -> bytes:
    headers = {"Content-Type": "application/json"}
    if config.door_token_file is not None:
        headers["Authorization"] = f"Bearer {config.door_token_file.read_text().strip()}"
    async with session.post(url, data=body, headers=headers, timeout=aiohttp.ClientTimeout(total=5)) as answer:
        if answer.status >= 300:
            raise aiohttp.ClientError(f"{url} answered {answer.status}: {(await answer.text(errors='replace'))[:200]}")
        return await answer.read()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
