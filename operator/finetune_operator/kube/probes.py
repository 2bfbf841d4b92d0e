"""One plain HTTP port for what watches the operator: /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Check = Callable[[], str | None]
"""None: all is well. Else what is wrong."""


def probes_application(*, registry: CollectorRegistry, healthy: Check, ready: Check) -> web.Application:
    """The three routes. A check that fails answers 503 with its reason."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(problem=healthy())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(problem=ready())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application(client_max_size=1024)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", metrics)
    return application


def _answer(*, problem: str | None) -> web.Response:
    return web.Response(text="ok\n") if problem is None else web.Response(text=f"{problem}\n", status=503)
