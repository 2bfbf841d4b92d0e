"""One client request: routed, answered, counted. Retried elsewhere only while the client has seen nothing."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from finetune_api.routes import Routes
from finetune_gateway.answers import Answer, streamed, whole
from finetune_gateway.client_stream import ClientStream, HungUpError, let_go_unless_read, parts_of
from finetune_gateway.config import GatewayConfig
from finetune_gateway.event_stream import HEARTBEAT, EventStream
from finetune_gateway.flights import Flight, Flights
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.openai_format import ParsedRequest, error_body
from finetune_gateway.quality import fault_of_answer
from finetune_gateway.request_id import ANSWER_HEADER
from finetune_gateway.routing import Choice, choose
from finetune_gateway.shadow import Comparator
from finetune_gateway.tally import ArmKey, User
from finetune_gateway.votes import Votes
from finetune_http.plain_errors import said_of

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 2.0
_NO_TIME_SECONDS = 0.05
_PAUSE_SECONDS = 0.25
"""Before the same version is asked again: what was wrong with the way to it may be over."""
_PASSED_HEADERS = ("Content-Type", "Cache-Control", "Retry-After")
"""What else a version's server says of itself could tell a client which one it was."""
_SENT_HEADERS = CIMultiDict({"Content-Type": "application/json"})


class _RetryError(Exception):
    """The variant gave no answer, and the client has seen nothing."""

    def __init__(self, *, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """A request that was read, checked and may be forwarded."""

    request: web.Request
    path: str
    body: bytes
    parsed: ParsedRequest
    user: User
    position: float


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One try to have a request answered."""

    incoming: Incoming
    routes: Routes
    key: ArmKey
    due: float
    """By the event loop's clock: when the client should have its whole answer."""
    first: bool
    """At the variant that the request was given. Only this one says something about it."""
    last: bool
    elsewhere: bool
    """The next try is made at another variant."""


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

    async def answer(self, incoming: Incoming) -> web.StreamResponse:
        """The client's answer: a variant's, or an error in OpenAI's form. The limit holds for all attempts together."""
        routes = self.live.current
        if routes is None:
            return refuse(status=503, message="no routes yet: the endpoint has no version to serve")
        choice = choose(
            routes=routes, headers=incoming.request.headers, position=incoming.position, is_open=self.live.is_open
        )
        if choice is None:
            return refuse(status=503, message="no version is ready to serve")
        due = asyncio.get_running_loop().time() + self.config.timeout_seconds
        targets = self._targets(choice)
        for number, variant in enumerate(targets):
            if variant in targets[:number]:
                await asyncio.sleep(_PAUSE_SECONDS)
            attempt = _Attempt(
                incoming=incoming,
                routes=routes,
                key=(routes.epoch, choice.rule, variant),
                due=due,
                first=number == 0,
                last=number == len(targets) - 1,
                elsewhere=variant not in targets[number + 1 :] and number < len(targets) - 1,
            )
            try:
                return await self._attempt(attempt)
            except _RetryError as error:
                self.metrics.retries.labels(error.reason).inc()
                logger.warning("variant %s: %s; trying the next", routes.variants[variant].name, error)
        return refuse(status=502, message="no version answered; try again")

    @staticmethod
    def _targets(choice: Choice) -> list[str]:
        """The chosen variant, its fallback, and the last one again: its Service may reach a healthy pod next time."""
        targets = [choice.variant] if choice.fallback is None else [choice.variant, choice.fallback]
        return [*targets, targets[-1]]

    async def _attempt(self, attempt: _Attempt) -> web.StreamResponse:
        incoming, key, variant = attempt.incoming, attempt.key, attempt.routes.variants[attempt.key[2]]
        loop = asyncio.get_running_loop()
        flight = self.flights.begin(
            key=key,
            user=incoming.user,
            cap=attempt.routes.judging.user_weight_cap,
            first=attempt.first,
            elsewhere=attempt.elsewhere,
        )
        request_id = self.votes.new_id(key)
        answer, what, judged, code = Answer(status=0), "", True, 0
        try:
            upstream, body = await self._first_byte(attempt, url=variant.url, flight=flight)
            code, seconds = upstream.status, loop.time() - flight.began
            headers = {name: upstream.headers[name] for name in _PASSED_HEADERS if name in upstream.headers}
            headers[ANSWER_HEADER] = request_id
            if body is None:
                response, answer = await self._pass_stream(attempt, upstream, headers=headers, flight=flight)
                code = 599 if answer.fault else code
                return response
            answer = whole(status=upstream.status, body=body, seconds=seconds)
            if answer.failed and not attempt.last and (answer.status != 429 or attempt.elsewhere):
                reason = "busy" if answer.status in (429, 503) else "server_error"
                raise _RetryError(reason=reason, what=str(answer.problem))
            let_go_unless_read(incoming.request, size=len(body), seconds=self.config.timeout_seconds)
            return web.Response(status=upstream.status, body=body, headers=headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            what = said_of(error)
            answer = Answer(status=0, seconds=loop.time() - flight.began)
            if loop.time() >= attempt.due - _NO_TIME_SECONDS:
                code = 504
                return refuse(status=504, message=f"no answer within {self.config.timeout_seconds:g} s")
            raise _RetryError(reason="connect", what=what) from error
        except _RetryError:
            judged = not flight.left  # it was well, as far as anybody knows
            raise
        except (ConnectionResetError, asyncio.CancelledError):
            judged, code = False, 499
            raise
        finally:
            self.flights.end(
                flight,
                failed=answer.failed,
                refused=answer.refused,
                what=what or str(answer.problem),
                judged=judged,
            )
            if flight.counted and judged:
                self.votes.counts(request_id)
            self.metrics.answered(variant=variant.name, code=code, seconds=loop.time() - flight.began)
            if judged:
                loop.call_soon(self._judge, attempt, request_id, answer)  # the client has it first

    async def _first_byte(
        self, attempt: _Attempt, *, url: str, flight: Flight
    ) -> tuple[aiohttp.ClientResponse, bytes | None]:
        """Send the request and wait for the answer: all of it, or the head of a stream. Until then the client has seen
        nothing, and a variant that is left is not waited for."""
        waiting = self._post(attempt, url=url)
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

    async def _post(self, attempt: _Attempt, *, url: str) -> tuple[aiohttp.ClientResponse, bytes | None]:
        left = max(attempt.due - asyncio.get_running_loop().time(), 0.001)
        # `connect` holds for what comes before the socket too: a name that is not resolved.
        timeout = aiohttp.ClientTimeout(total=left, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS)
        upstream = await self.session.post(
            url + attempt.incoming.path,
            data=attempt.incoming.body,
            headers=_SENT_HEADERS,
            timeout=timeout,
            allow_redirects=False,
        )
        if upstream.headers.get("Content-Type", "").startswith("text/event-stream"):
            return upstream, None
        async with upstream:
            return upstream, await upstream.read()

    async def _pass_stream(
        self, attempt: _Attempt, upstream: aiohttp.ClientResponse, *, headers: dict[str, str], flight: Flight
    ) -> tuple[web.StreamResponse, Answer]:
        """Hand events on as they come; where the version breaks off, another one that says so."""
        loop, events, what = asyncio.get_running_loop(), EventStream(), None
        async with (
            upstream,
            ClientStream(
                request=attempt.incoming.request, status=upstream.status, headers=headers, due=attempt.due
            ) as stream,
        ):
            try:
                async for chunk in parts_of(upstream.content, quiet_seconds=self.config.heartbeat_seconds):
                    ready = events.feed(chunk) if chunk else HEARTBEAT * events.may_have_comment
                    if ready:
                        await stream.write(ready)
                rest = events.end()
                if rest:
                    await stream.write(rest)
                if events.fault is not None:
                    what = f"the answer broke off: {events.fault}"
            except (aiohttp.ClientError, TimeoutError) as error:
                late = isinstance(error, TimeoutError)
                if late and stream.waited_seconds > self.config.timeout_seconds / 2:
                    raise HungUpError from error
                what = "the answer broke off"
                if late:
                    what = f"the answer was not complete within {self.config.timeout_seconds:g} s"
            seconds = loop.time() - flight.began - stream.waited_seconds
            answer = streamed(status=upstream.status, events=events, seconds=seconds)
            if what is not None:
                answer = replace(answer, fault=what)
                if not events.said_error:
                    await stream.break_off(message=what)
            await stream.end()
        return stream.response, answer

    def _judge(self, attempt: _Attempt, request_id: str, answer: Answer) -> None:
        """Count a bad answer, and maybe compare it with the candidate's."""
        parsed = attempt.incoming.parsed
        fault = fault_of_answer(answer, json_expected=parsed.json_expected, limited=parsed.limited)
        if fault is not None and not answer.failed:
            self.votes.found_bad(request_id)
        if attempt.first:
            self.comparator.offer(
                path=attempt.incoming.path,
                body=attempt.incoming.body,
                variant=attempt.key[2],
                stable=answer,
                json_expected=parsed.json_expected,
                limited=parsed.limited,
            )


def refuse(*, status: int, message: str, code: str | None = None, param: str | None = None) -> web.Response:
    """An error of our own in OpenAI's form."""
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    body = error_body(status=status, message=message, code=code, param=param)
    return web.json_response(body, status=status, headers=headers)
