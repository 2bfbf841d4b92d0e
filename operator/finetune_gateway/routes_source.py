"""Where routes come from: the endpoint's ConfigMap watched by name, or a file (local mode).

Routes are taken whole or not at all. While the source is away, or holds what this version cannot read, the last good
ones stay in force.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import ValidationError

from finetune_api.routes import ROUTES_KEY, Routes
from finetune_http.lost_nodes import watched_socket

logger = logging.getLogger(__name__)
Accept = Callable[[Routes], None]
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FILE_INTERVAL_SECONDS = 0.1
_MAXIMUM_BACKOFF_SECONDS = 5.0
_WATCH_SECONDS = 240


def read_routes(*, text: str) -> Routes | None:
    """The routes, or None (with a log line) where they cannot be read."""
    try:
        return Routes.model_validate_json(text)
    except ValidationError as error:
        logger.error("routes refused, the last good ones stay: %s", error)
        return None


async def follow_file(*, path: Path, accept: Accept) -> None:
    """Watch a file that is replaced atomically. Runs until cancelled."""
    seen: tuple[int, int] | None = None
    while True:
        try:
            seen = _accept_changed(path=path, seen=seen, accept=accept)
        except OSError:
            logger.debug("%s is not there", path)
        await asyncio.sleep(_FILE_INTERVAL_SECONDS)


def _accept_changed(*, path: Path, seen: tuple[int, int] | None, accept: Accept) -> tuple[int, int]:
    """Read the file where it is another one than the one seen; its new mark (mtime, inode)."""
    status = path.stat()
    mark = (status.st_mtime_ns, status.st_ino)
    if mark != seen:
        routes = read_routes(text=path.read_text())
        if routes is not None:
            accept(routes)
    return mark


async def follow_config_map(*, server: str, namespace: str, name: str, accept: Accept) -> None:
    """Watch one ConfigMap by name with the pod's service account. Runs until cancelled; reconnects with backoff."""
    context = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
    backoff = 0.2
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, socket_factory=watched_socket)
    ) as session:
        while True:
            try:
                async for text in _versions(session=session, server=server, namespace=namespace, name=name):
                    backoff = 0.2
                    routes = read_routes(text=text)
                    if routes is not None:
                        accept(routes)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                logger.warning("watching ConfigMap %s/%s: %s; the last good routes stay", namespace, name, error)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                backoff = min(backoff * 2, _MAXIMUM_BACKOFF_SECONDS)


async def _versions(*, session: aiohttp.ClientSession, server: str, namespace: str, name: str) -> Any:
    """Yield routes.json now and after every change, until the watch ends."""
    url = f"{server}/api/v1/namespaces/{namespace}/configmaps"
    headers = {"Authorization": f"Bearer {(_ACCOUNT / 'token').read_text().strip()}"}
    selector = {"fieldSelector": f"metadata.name={name}"}
    timeout = aiohttp.ClientTimeout(total=10)
    async with session.get(url, params=selector, headers=headers, timeout=timeout) as answer:
        answer.raise_for_status()
        listed = await answer.json()
    for item in listed["items"]:
        if ROUTES_KEY in item.get("data", {}):
            yield item["data"][ROUTES_KEY]
    params = {
        **selector,
        "watch": "1",
        "resourceVersion": listed["metadata"]["resourceVersion"],
        "timeoutSeconds": str(_WATCH_SECONDS),
    }
    timeout = aiohttp.ClientTimeout(total=None, sock_read=_WATCH_SECONDS + 10)
    async with session.get(url, params=params, headers=headers, timeout=timeout) as answer:
        answer.raise_for_status()
        async for line in _lines(answer):
            event = json.loads(line)
            if event["type"] == "ERROR":
                return
            data = event["object"].get("data", {})
            if event["type"] in ("ADDED", "MODIFIED") and ROUTES_KEY in data:
                yield data[ROUTES_KEY]


async def _lines(answer: aiohttp.ClientResponse) -> Any:
    """Lines of any length: a ConfigMap can be larger than the reader's own limit for a line."""
    buffer = b""
    async for chunk in answer.content.iter_any():
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if line.strip():
                yield line
