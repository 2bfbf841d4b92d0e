"""The door: the one HTTPS address at which our own pods talk to the operator.

    POST /v1/progress/{namespace}/{job}     a training pod reports (Kubeflow Trainer's progress protocol, KEP-2779)
    POST /v1/observations                   a gateway reports what it saw and which routes it serves

Answers: 200 taken; 400 not a report; 401 no proof of which pod calls; 403 another job's pod; 404 no such path; 408 too
slow; 413 over 64 KiB; 429 too often (Retry-After); 503 the apiserver cannot vouch for the caller now (Retry-After).
The body is JSON: `{}`, for a gateway where its peers are, or `{"error": "..."}`. Whoever loses a report loses nothing:
the next one holds it all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from pydantic import ValidationError

from finetune_api.base import first_problem
from finetune_api.observations import OBSERVATIONS_ROUTE, Observations, ObservationsReply
from finetune_api.progress import PROGRESS_ROUTE, ProgressReport
from finetune_http.plain_errors import PlainRunner
from finetune_operator.core.ports import Key, UnavailableError
from finetune_operator.kube.gatekeeper import ForbiddenError, Gatekeeper, PodIdentity, UnauthenticatedError
from finetune_operator.kube.inboxes import ObservationInbox, ProgressInbox

log = logging.getLogger(__name__)

MAXIMUM_BODY_BYTES = 64 * 1024
READ_SECONDS = 10.0
_CALLERS = 8192


class RateLimit:
    """Allows each caller `burst` calls at once and `per_second` on average; remembers a bounded number of callers."""

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, *, caller: str) -> float:
        """0 and the call is counted; or the seconds after which the caller may try again."""
        wait = self.wait_seconds(caller=caller)
        if wait == 0:
            self._buckets[caller] = (self._level(caller=caller) - 1, self._clock())
            self._buckets.move_to_end(caller)
            if len(self._buckets) > _CALLERS:
                self._buckets.popitem(last=False)
        return wait

    def wait_seconds(self, *, caller: str) -> float:
        """The seconds after which a call would be allowed; 0: now. Counts nothing."""
        return max(0.0, 1 - self._level(caller=caller)) / self._per_second

    def _level(self, *, caller: str) -> float:
        if caller not in self._buckets:
            return self._burst
        level, at = self._buckets[caller]
        return min(self._burst, level + (self._clock() - at) * self._per_second)


_GATEKEEPER = web.AppKey("gatekeeper", Gatekeeper)
_INBOX = web.AppKey("inbox", ProgressInbox)
_OBSERVATIONS = web.AppKey("observations", ObservationInbox)
_GATEWAY_LIMIT = web.AppKey("gateway_limit", RateLimit)
_REFUSAL_LIMIT = web.AppKey("refusal_limit", RateLimit)
_POD_LIMIT = web.AppKey("pod_limit", RateLimit)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def door_application(
    *, gatekeeper: Gatekeeper, inbox: ProgressInbox, observations: ObservationInbox
) -> web.Application:
    """The door's routes.

    A pod may call ten times as often as the protocol's five-second interval needs. An address that keeps showing bad
    tokens is refused without asking the apiserver about them.
    """
    application = web.Application(client_max_size=MAXIMUM_BODY_BYTES, middlewares=[answer_in_json])
    application[_GATEKEEPER] = gatekeeper
    application[_INBOX] = inbox
    application[_REFUSAL_LIMIT] = RateLimit(per_second=1.0, burst=20)
    application[_POD_LIMIT] = RateLimit(per_second=2.0, burst=20)
    application[_OBSERVATIONS] = observations
    application[_GATEWAY_LIMIT] = RateLimit(per_second=20.0, burst=100)
    application.router.add_post(PROGRESS_ROUTE, _progress)
    application.router.add_post(OBSERVATIONS_ROUTE, _observations)
    return application


@asynccontextmanager
async def serving(
    *, application: web.Application, host: str | None, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve while the context is open. Host None: all addresses. Gives the port, chosen by the system where it is 0."""
    runner = PlainRunner(
        application,
        refuse=lambda status, words: _refusal(status=status, message=words),
        access_log=None,
        handle_signals=False,
        keepalive_timeout=30,
        shutdown_timeout=2,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls, backlog=512)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _progress(request: web.Request) -> web.Response:
    namespace, job = request.match_info["namespace"], request.match_info["job"]
    pod = await _caller(request)
    check(wait_seconds=request.app[_POD_LIMIT].take(caller=pod.uid))
    uid = await request.app[_GATEKEEPER].authorise(pod=pod, namespace=namespace, job=job)
    async with asyncio.timeout(READ_SECONDS):
        body = await request.read()
    report = ProgressReport.model_validate_json(body)
    key = Key(kind="FineTuneJob", namespace=namespace, name=job)
    request.app[_INBOX].report(key=key, uid=uid, status=report.trainer_status)
    return web.json_response({})


async def _observations(request: web.Request) -> web.Response:
    pod = await _caller(request)
    check(wait_seconds=request.app[_GATEWAY_LIMIT].take(caller=pod.uid))
    async with asyncio.timeout(READ_SECONDS):
        body = await request.read()
    observations = Observations.model_validate_json(body)
    await request.app[_GATEKEEPER].authorise_gateway(pod=pod, endpoint=observations.endpoint)
    # Whatever the body says of its sender: the pod is the one that the token is bound to.
    named = observations.model_copy(update={"gateway": pod.name})
    inbox = request.app[_OBSERVATIONS]
    inbox.report(namespace=pod.namespace, observations=named)
    reply = ObservationsReply(peers=inbox.peers(namespace=pod.namespace, of=named))
    return web.json_response(reply.to_dict())


async def _caller(request: web.Request) -> PodIdentity:
    """The pod that calls. Raises UnauthenticatedError."""
    address = request.remote or ""
    refusals = request.app[_REFUSAL_LIMIT]
    check(wait_seconds=refusals.wait_seconds(caller=address))
    try:
        return await request.app[_GATEKEEPER].identify(token=bearer_token(request))
    except UnauthenticatedError:
        refusals.take(caller=address)
        raise


def bearer_token(request: web.Request) -> str:
    """What the caller shows. Raises UnauthenticatedError."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnauthenticatedError("the Authorization header holds no bearer token")
    return token


def check(*, wait_seconds: float) -> None:
    """Answer with 429 where the caller has to wait."""
    if wait_seconds > 0:
        message = "too many calls; one every 5 s is enough"
        raise web.HTTPTooManyRequests(text=message, headers=_retry_after(wait_seconds))


@web.middleware
async def answer_in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as JSON with its status; nothing of what the caller sent is echoed or logged."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        headers = {name: error.headers[name] for name in ("Retry-After", "Allow") if name in error.headers}
        return _refusal(status=error.status, message=error.text or error.reason, headers=headers)
    except ValidationError as error:
        return _refusal(status=400, message=f"not a report: {first_problem(error, root='body')}")
    except UnauthenticatedError as error:
        return _refusal(status=401, message=str(error), headers={"WWW-Authenticate": "Bearer"})
    except ForbiddenError as error:
        return _refusal(status=403, message=str(error))
    except TimeoutError:
        return _refusal(status=408, message=f"the body did not arrive within {READ_SECONDS:.0f} s")
    except UnavailableError as error:
        log.warning("cannot check who calls: %s", error)
        message = "the apiserver does not answer; call again"
        return _refusal(status=503, message=message, headers=_retry_after(5))


def _refusal(*, status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": message}, status=status, headers=headers)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(seconds))}
