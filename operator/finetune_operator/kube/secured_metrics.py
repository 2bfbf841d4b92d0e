"""Metrics for whom the cluster lets read them (FINETUNE_METRICS Authenticated): a port of its own, by TLS.

As of other controllers, the certificate is one that the process signs for itself: who scrapes does not verify it.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web

from finetune_operator.kube.certificates import new_authority, new_serving
from finetune_operator.kube.door import RateLimit, answer_in_json, bearer_token, check
from finetune_operator.kube.doorway import load_certificate
from finetune_operator.kube.gatekeeper import ForbiddenError, Readers, UnauthenticatedError


def secured_application(
    *, readers: Readers, metrics: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.Application:
    """/metrics with a bearer token. Answers otherwise as the door's: 401, 403, 429, 503."""
    refusals = RateLimit(per_second=1.0, burst=20)

    async def secured(request: web.Request) -> web.StreamResponse:
        address = request.remote or ""
        check(wait_seconds=refusals.wait_seconds(caller=address))
        try:
            await readers.admit(token=bearer_token(request))
        except (UnauthenticatedError, ForbiddenError):
            refusals.take(caller=address)
            raise
        return await metrics(request)

    application = web.Application(client_max_size=1024, middlewares=[answer_in_json])
    application.router.add_get("/metrics", secured)
    return application


def own_certificate(*, name: str) -> ssl.SSLContext:
    """To serve with, for as long as the process lives."""
    now = datetime.now(UTC)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context=context, pair=new_serving(authority=new_authority(now=now), names=(name,), now=now))
    return context
