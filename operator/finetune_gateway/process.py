"""A gateway replica from start to graceful end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from finetune_gateway.access_log import AccessLog
from finetune_gateway.api_keys import ApiKeys
from finetune_gateway.application import Application
from finetune_gateway.config import GatewayConfig
from finetune_gateway.first_answers import wait_for_first_answers
from finetune_gateway.flights import Flights
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.openai_format import error_body
from finetune_gateway.peers import VOTE_ROUTE, Peers
from finetune_gateway.proxy import Proxy
from finetune_gateway.reporting import report
from finetune_gateway.request_id import Sealer, issuer_tag
from finetune_gateway.routes_source import follow_config_map, follow_file
from finetune_gateway.shadow import Comparator
from finetune_gateway.tally import Tally
from finetune_gateway.votes import Votes
from finetune_http.lost_nodes import watched_socket
from finetune_http.plain_errors import PlainRunner

if TYPE_CHECKING:
    from finetune_gateway.tracing import Tracing

logger = logging.getLogger(__name__)
_UPSTREAM_CONNECTIONS = 1024
_IDLE_SECONDS = 4.0
"""Shorter than any server keeps a connection (uvicorn, and so vLLM: 5 s). What a server closes while a request is on
its way there has failed, and more often so at the version that has fewer requests."""
_NOT_PACKED = {"Accept-Encoding": "identity"}
_VOTE_BYTES = 4096
_AGAIN_SECONDS = 1.0
_CUT_OFF_SECONDS = 1.0
"""For what is still under way after the time to drain: a client that does not read holds up nobody's end."""


async def serve(*, config: GatewayConfig) -> None:
    """Serve until SIGTERM or SIGINT; then let requests under way finish, for at most `drain_seconds`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(session_to_versions())
        app = assemble(config=config, session=session)
        background = [
            lambda: _routes(config=config, live=app.live),
            lambda: wait_for_first_answers(live=app.live, session=session, longest_seconds=config.first_answer_seconds),
            app.proxy.flights.sweep,
            app.proxy.comparator.probe,
            app.access_log.keep_writing,
            lambda: report(config=config, live=app.live, tally=app.live.tally, metrics=app.metrics, peers=app.peers),
        ]
        if app.proxy.tracing is not None:
            background.append(app.proxy.tracing.keep_sending)
        tasks = [asyncio.create_task(kept_up(work)) for work in background]
        status = await _listen(
            stack=stack,
            app=_status_application(app),
            headers=dict,
            head_seconds=config.body_timeout_seconds,
            host=config.host,
            port=config.status_port,
        )
        await _listen(
            stack=stack,
            app=app.build(),
            headers=app.ids_of_nobody,
            head_seconds=config.body_timeout_seconds,
            host=config.host,
            port=config.port,
            share=config.share_port,
        )
        logger.info("serving %s on port %d, status on port %s", config.endpoint, config.port, status)
        gc.collect()
        gc.freeze()  # what was imported stays for good; looking through it again and again only makes requests wait
        await stop.wait()
        await _drain(app)
        await app.proxy.comparator.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if app.proxy.tracing is not None:
            await app.proxy.tracing.close()


async def kept_up(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run what runs until it is cancelled. What it raises is told, and it begins anew: whatever others send beside the
    clients' requests, these are answered.
    """
    while True:
        try:
            await work()
        except Exception:
            logger.exception("what runs beside the requests failed; it begins anew")
        await asyncio.sleep(_AGAIN_SECONDS)


def session_to_versions() -> aiohttp.ClientSession:
    """Connections to versions and to other gateways. Nothing of one client's answer may reach another's request."""
    connector = aiohttp.TCPConnector(
        limit=_UPSTREAM_CONNECTIONS, keepalive_timeout=_IDLE_SECONDS, socket_factory=watched_socket
    )
    return aiohttp.ClientSession(connector=connector, headers=_NOT_PACKED, cookie_jar=aiohttp.DummyCookieJar())


def assemble(*, config: GatewayConfig, session: aiohttp.ClientSession) -> Application:
    """The parts of a gateway, wired; none of them runs."""
    address = _host_and_port(config.address, config.status_port) if config.address else ""
    tally = Tally(endpoint=config.endpoint, gateway=config.name, address=address)
    metrics = Metrics()
    live = LiveRoutes(tally=tally, metrics=metrics)
    votes = Votes(tally=tally, sealer=Sealer(issuer=issuer_tag(config.name)))
    proxy = Proxy(
        config=config,
        live=live,
        flights=Flights(live=live, tally=tally),
        comparator=Comparator(live=live, tally=tally, session=session),
        votes=votes,
        metrics=metrics,
        session=session,
        tracing=_tracing(config, metrics=metrics),
    )
    return Application(
        config=config,
        live=live,
        proxy=proxy,
        keys=ApiKeys(folder=config.keys_folder),
        votes=votes,
        peers=Peers(session=session),
        metrics=metrics,
        access_log=AccessLog(enabled=config.access_log, on_drop=metrics.lines_dropped.inc),
    )


def _tracing(config: GatewayConfig, *, metrics: Metrics) -> Tracing | None:
    if not config.tracing_endpoint:
        return None
    from finetune_gateway.tracing import Tracing  # what nobody uses costs no memory

    return Tracing(endpoint=config.tracing_endpoint, gateway=config.name, on_drop=metrics.spans_dropped.inc)


def _routes(*, config: GatewayConfig, live: LiveRoutes) -> Coroutine[None, None, None]:
    if config.routes_file is not None:
        return follow_file(path=config.routes_file, accept=live.accept)
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return follow_config_map(
        server=f"https://{_host_and_port(host, port)}",
        namespace=config.namespace,
        name=f"{config.endpoint}-routes",
        accept=live.accept,
    )


def _host_and_port(host: str, port: str | int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _status_application(app: Application) -> web.Application:
    """Probes, metrics and other gateways' votes. Ready means: routes are in force, and this one is not to stop."""

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        if app.draining or not app.live.asked:
            return web.Response(status=503, text="draining\n" if app.draining else "no routes yet\n")
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(app.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    status = web.Application(client_max_size=_VOTE_BYTES)
    status.router.add_get("/healthz", healthy)
    status.router.add_get("/readyz", ready)
    status.router.add_get("/metrics", metrics)
    status.router.add_post(VOTE_ROUTE, app.vote_of_peer)
    return status


async def _listen(
    *,
    stack: AsyncExitStack,
    app: web.Application,
    headers: Callable[[], dict[str, str]],
    head_seconds: float,
    host: str,
    port: int,
    share: bool = False,
) -> int:
    def refuse(status: int, words: str) -> web.Response:
        return web.json_response(error_body(status=status, message=words), status=status, headers=headers())

    runner = PlainRunner(
        app,
        refuse=refuse,
        head_seconds=head_seconds,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=75,
        shutdown_timeout=_CUT_OFF_SECONDS,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, host, port, backlog=1024, reuse_address=True, reuse_port=share)
    await site.start()
    return port


async def _drain(app: Application) -> None:
    """Let clients finish: new requests on open connections are still answered, and told to close."""
    app.draining = True
    try:
        async with asyncio.timeout(app.config.drain_seconds if app.in_flight else 0):
            await app.idle.wait()
    except TimeoutError:
        if app.in_flight:
            logger.warning("%d requests cut off after %g s", app.in_flight, app.config.drain_seconds)
