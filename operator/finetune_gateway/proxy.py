"""One client request: routed, answered, counted. Retried elsewhere only while the client has seen nothing."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from finetune_api.routes import Routes
from finetune_gateway.client_stream import ClientStream, HungUpError, let_go_unless_read
from finetune_gateway.config import GatewayConfig
from finetune_gateway.flights import Flight, Flights
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.openai_format import ParsedRequest, answer_text, error_body
from finetune_gateway.plain_errors import said_of
from finetune_gateway.quality import fault_of
from finetune_gateway.request_id import ANSWER_HEADER
from finetune_gateway.routing import Choice, choose
from finetune_gateway.shadow import Answer, Comparator
from finetune_gateway.tally import ArmKey, User
from finetune_gateway.votes import Votes

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 2.0
_SHADOWED_BYTES = 1 << 20
"""Longer answers are passed on but not judged: judging must not cost memory."""
_PASSED_HEADERS = ("Content-Type", "Cache-Control")
"""What else a version's server says of itself could tell a client which one it was."""
_SENT_HEADERS = CIMultiDict({"Content-Type": "application/json"})


class _RetryError(Exception):
    """The variant gave no answer, and the client has seen nothing."""

    def __init__(self, *, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class _BrokenError(Exception):
    """The answer broke off after the client had seen a part of it. `response` ends with an error event."""

    def __init__(self, *, what: str, response: web.StreamResponse) -> None:
        super().__init__(what)
        self.response = response


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """A request that was read, checked and may be forwarded."""

    request: web.Request
    path: str
    body: bytes
    parsed: ParsedRequest
    user: User
    position: float


@dataclass(kw_only=True)
class Proxy:
    """Forwards requests by the routes in force."""

    config: GatewayConfig
    live: LiveRoutes
    flights: Flights
    comparator: Comparator
    votes: Votes
    metrics: Metrics
    session: aiohttp.ClientSession
    _timeout: aiohttp.ClientTimeout = field(init=False)

    def __post_init__(self) -> None:
        """What is the same for every request is made once."""
        self._timeout = aiohttp.ClientTimeout(total=self.config.timeout_seconds, sock_connect=CONNECT_SECONDS)

    async def answer(self, incoming: Incoming) -> web.StreamResponse:
        """The client's answer: a variant's, or an error in OpenAI's form."""
        routes = self.live.current
        if routes is None:
            return refuse(status=503, message="no routes yet: the endpoint has no version to serve")
        choice = choose(
            routes=routes, headers=incoming.request.headers, position=incoming.position, is_open=self.live.is_open
        )
        if choice is None:
            return refuse(status=503, message="no version is ready to serve")
        targets = self._targets(choice)
        for number, variant in enumerate(targets):
            try:
                return await self._attempt(
                    incoming=incoming, routes=routes, rule=choice.rule, variant=variant, last=number == len(targets) - 1
                )
            except _RetryError as error:
                self.metrics.retries.labels(error.reason).inc()
                logger.warning("variant %s: %s; trying the next", routes.variants[variant].name, error)
        return refuse(status=502, message="no version answered; try again")

    @staticmethod
    def _targets(choice: Choice) -> list[str]:
        """The chosen variant, its fallback, and the last one again: its Service may reach a healthy pod next time."""
        targets = [choice.variant] if choice.fallback is None else [choice.variant, choice.fallback]
        return [*targets, targets[-1]]

    async def _attempt(
        self, *, incoming: Incoming, routes: Routes, rule: str, variant: str, last: bool
    ) -> web.StreamResponse:
        key = (routes.epoch, rule, variant)
        flight = self.flights.begin(key=key, user=incoming.user, cap=routes.judging.user_weight_cap)
        request_id = self.votes.new_id(key)
        failed, what, judged, code = True, "", True, 0
        try:
            upstream = await self._first_byte(incoming=incoming, url=routes.variants[variant].url, flight=flight)
            async with upstream:
                code = upstream.status
                if upstream.status >= 500:
                    what = f"status {upstream.status}"
                    if not last:
                        raise _RetryError(reason="server_error", what=what)
                else:
                    failed = False
                return await self._pass_on(incoming, upstream, key=key, request_id=request_id, flight=flight)
        except (aiohttp.ClientError, TimeoutError) as error:
            failed, what = True, said_of(error)
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                code = 504
                return refuse(status=504, message=f"no answer within {self.config.timeout_seconds:g} s")
            raise _RetryError(reason="connect", what=what) from error
        except _BrokenError as error:
            failed, what, code = True, str(error), 599
            return error.response
        except (ConnectionResetError, asyncio.CancelledError):
            judged, code = False, 499
            raise
        finally:
            self.flights.end(flight, failed=failed, what=what, judged=judged)
            if flight.counted and judged:
                self.votes.counts(request_id)
            seconds = asyncio.get_running_loop().time() - flight.began
            self.metrics.answered(variant=routes.variants[variant].name, code=code, seconds=seconds)

    async def _first_byte(self, *, incoming: Incoming, url: str, flight: Flight) -> aiohttp.ClientResponse:
        """Send the request and wait for the answer's head. A variant that is left meanwhile is not waited for."""
        waiting = self.session.post(
            url + incoming.path,
            data=incoming.body,
            headers=_SENT_HEADERS,
            timeout=self._timeout,
            allow_redirects=False,
        )
        if flight.overdue_seconds is None:
            return await waiting
        task = asyncio.ensure_future(waiting)
        flight.upstream = task
        try:
            return await task
        except asyncio.CancelledError:
            if not (flight.left or flight.overdue) or asyncio.current_task().cancelling():  # type: ignore[union-attr]
                task.cancel()
                raise
            reason, what = ("breaker", "left while waiting") if flight.left else ("overdue", "no answer in time")
            raise _RetryError(reason=reason, what=what) from None
        finally:
            flight.upstream = None

    async def _pass_on(
        self, incoming: Incoming, upstream: aiohttp.ClientResponse, *, key: ArmKey, request_id: str, flight: Flight
    ) -> web.StreamResponse:
        headers = {name: upstream.headers[name] for name in _PASSED_HEADERS if name in upstream.headers}
        headers[ANSWER_HEADER] = request_id
        if upstream.headers.get("Content-Type", "").startswith("text/event-stream"):
            return await self._pass_stream(incoming, upstream, headers=headers, key=key, flight=flight)
        body = await upstream.read()
        if upstream.status == 200:
            self._after(incoming, key=key, request_id=request_id, flight=flight, body=body, status=200)
        let_go_unless_read(incoming.request, size=len(body), seconds=self.config.timeout_seconds)
        return web.Response(status=upstream.status, body=body, headers=headers)

    async def _pass_stream(
        self,
        incoming: Incoming,
        upstream: aiohttp.ClientResponse,
        *,
        headers: dict[str, str],
        key: ArmKey,
        flight: Flight,
    ) -> web.StreamResponse:
        timeout = self.config.timeout_seconds
        stream = ClientStream(
            request=incoming.request, status=upstream.status, headers=headers, due=flight.began + timeout
        )
        kept = bytearray()
        async with stream:
            try:
                async for chunk in upstream.content.iter_any():
                    if len(kept) < _SHADOWED_BYTES:
                        kept += chunk
                    await stream.write(chunk)
            except (aiohttp.ClientError, TimeoutError) as error:
                late = isinstance(error, TimeoutError)
                if late and stream.waited_seconds > timeout / 2:
                    raise HungUpError from error
                said = f"the answer was not complete within {timeout:g} s" if late else "the answer broke off"
                await stream.break_off(message=said)
                raise _BrokenError(what=f"{said}: {said_of(error)}", response=stream.response) from error
            await stream.end()
        self._after(
            incoming,
            key=key,
            request_id=headers[ANSWER_HEADER],
            flight=flight,
            body=bytes(kept),
            status=upstream.status,
        )
        return stream.response

    def _after(
        self, incoming: Incoming, *, key: ArmKey, request_id: str, flight: Flight, body: bytes, status: int
    ) -> None:
        """Judge the answer and maybe shadow it, once the client has it."""
        loop = asyncio.get_running_loop()
        seconds = loop.time() - flight.began
        loop.call_soon(self._judge, incoming, key, request_id, body, status, seconds)

    def _judge(
        self,
        incoming: Incoming,
        key: ArmKey,
        request_id: str,
        body: bytes,
        status: int,
        seconds: float,
    ) -> None:
        text = answer_text(body=body) if len(body) < _SHADOWED_BYTES else None
        expected = incoming.parsed.json_expected
        if text is not None and fault_of(text=text, json_expected=expected) is not None:
            self.votes.found_bad(request_id)
        self.comparator.offer(
            path=incoming.path,
            body=incoming.body,
            variant=key[2],
            stable=Answer(status=status, text=text, seconds=seconds),
            json_expected=expected,
        )


def refuse(*, status: int, message: str, code: str | None = None, param: str | None = None) -> web.Response:
    """An error of our own in OpenAI's form."""
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    body = error_body(status=status, message=message, code=code, param=param)
    return web.json_response(body, status=status, headers=headers)
