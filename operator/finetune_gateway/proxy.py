"""One client request: routed, answered, counted. Retried elsewhere only while the client has seen nothing."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from finetune_api.routes import Routes
from finetune_gateway.answers import Answer, streamed, whole
from finetune_gateway.client_stream import ClientStream, HungUpError, ReadInTime, parts_of, whole_body
from finetune_gateway.config import GatewayConfig
from finetune_gateway.event_stream import HEARTBEAT, EventStream
from finetune_gateway.flights import Flight, Flights
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.openai_format import ParsedRequest, Sender, error_body, error_in
from finetune_gateway.quality import fault_of_answer
from finetune_gateway.request_id import ANSWER_HEADER
from finetune_gateway.routing import Choice, choose
from finetune_gateway.shadow import Comparator
from finetune_gateway.tally import ArmKey, User
from finetune_gateway.trace_context import TRACEPARENT, carried
from finetune_gateway.votes import Votes
from finetune_http.plain_errors import said_of

if TYPE_CHECKING:
    from finetune_gateway.tracing import Asked, Tracing

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 2.0
ARM = "arm"
"""In an answer: the ArmKey of whom it counts for. For the access log, clients never see it."""
_NO_TIME_SECONDS = 0.05
_HELD_UP = 0.1
"""Of the time for an answer: where a client has kept its version waiting for more, being late is no failure of it."""
_LINE_SECONDS = 10.0
"""Between two lines of the log about one version."""
_PAUSE_SECONDS = 0.25
"""Before the same version is asked again: what was wrong with the way to it may be over."""
_NO_WAY_SECONDS = 10.0
"""How long a version that has answered before is asked again while no connection to it is made: a name that is not
resolved, a Service that still leads to a machine that is gone, or to nothing since its servers were too busy to say
that they are ready. Its client would only ask again, and wait anew for the version before."""
_HEAD_OF_STREAMS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The last one is for nginx, which would collect them."""
_SENT_HEADERS = CIMultiDict({"Content-Type": "application/json"})


class _RetryError(Exception):
    """The variant gave no answer, and the client has seen nothing."""

    def __init__(self, *, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class _SilentError(Exception):
    """A version goes on with an answer no more."""


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
    """At the variant that the request was given, which has answered before. Only this one says something about it."""
    last: bool
    asked: Asked | None
    """Its span, where requests are traced."""
    elsewhere: bool
    """The next try is made at another variant."""


@dataclass(kw_only=True)
class _Stream:
    """A streamed answer that has begun."""

    upstream: aiohttp.ClientResponse
    parts: AsyncIterator[bytes]
    events: EventStream
    ready: bytes
    """What the client may have already."""
    broke_off: str | None = None
    """Why it did, once it has."""

    @property
    def went_wrong(self) -> str | None:
        """What is wrong with it so far, whether or not there is still somebody to read it."""
        return self.broke_off or self.events.failure


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
    tracing: Tracing | None = None
    _untold: dict[str, int] = field(default_factory=dict)
    _told_at: dict[str, float] = field(default_factory=dict)

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
        targets, heard = self._targets(choice), choice.variant in self.live.heard
        if not heard and choice.fallback is not None:
            targets = targets[1:]
        for number, variant in enumerate(targets):
            if variant in targets[:number]:
                await asyncio.sleep(_PAUSE_SECONDS)
            attempt = _Attempt(
                incoming=incoming,
                routes=routes,
                key=(routes.epoch, choice.rule, variant),
                due=due,
                first=number == 0 and heard,
                last=number == len(targets) - 1,
                asked=self._traced(incoming, routes=routes, variant=variant),
                elsewhere=variant not in targets[number + 1 :] and number < len(targets) - 1,
            )
            try:
                response = await self._attempt(attempt)
                response[ARM] = attempt.key
                return response
            except _RetryError as error:
                self.metrics.retries.labels(error.reason).inc()
                self._tell(routes.variants[variant].name, error)
        return refuse(status=502, message="no version answered; try again")

    def _traced(self, incoming: Incoming, *, routes: Routes, variant: str) -> Asked | None:
        if self.tracing is None:
            return None
        target = routes.variants[variant]
        return self.tracing.begin(
            parent=carried(incoming.request.headers),
            path=incoming.path,
            model=routes.model,
            version=target.name,
            url=target.url,
        )

    def _tell(self, name: str, error: _RetryError) -> None:
        """A line now and then, with how many failures it stands for: a broken version fails every request."""
        self._untold[name] = self._untold.get(name, 0) + 1
        if time.monotonic() >= self._told_at.get(name, -_LINE_SECONDS) + _LINE_SECONDS:
            logger.warning("variant %s: %s; trying the next (%d times)", name, error, self._untold.pop(name))
            self._told_at[name] = time.monotonic()

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
        sender = Sender(answer_id=request_id, model=attempt.routes.model, created=int(time.time()))
        headers = {ANSWER_HEADER: request_id}
        answer, what, judged, code = Answer(status=0), "", True, 0
        came: Answer | _Stream | None = None
        try:
            came, retry_after = await self._first_event(attempt, url=variant.url, flight=flight, sender=sender)
            if isinstance(came, _Stream):
                self.metrics.first_byte.labels(variant.name).observe(loop.time() - flight.began)
                response, answer = await self._pass_stream(attempt, came, headers=headers, flight=flight)
                code = 599 if answer.fault else 200
                return response
            answer, code = came, came.status
            if answer.failed and not attempt.last and (answer.status != 429 or attempt.elsewhere):
                reason = "busy" if answer.status in (429, 503) else "server_error"
                raise _RetryError(reason=reason, what=str(answer.problem))
            if answer.status in (429, 503) and retry_after:
                headers["Retry-After"] = retry_after
            return self._whole_answer(attempt, answer, sender=sender, headers=headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            what = said_of(error)
            answer = Answer(status=0, seconds=loop.time() - flight.began)
            if loop.time() >= attempt.due - _NO_TIME_SECONDS:
                code = 504
                return refuse(status=504, message=f"no answer within {self.config.timeout_seconds:g} s")
            raise _RetryError(reason="connect", what=what) from error
        except _RetryError:
            judged = flight.given_up != "breaker"  # it was well, as far as anybody knows
            raise
        except (ConnectionResetError, asyncio.CancelledError):
            # That says nothing about the version, unless it was told of a failure, and may have gone for that.
            judged, code = isinstance(came, _Stream) and came.went_wrong is not None, 499
            if judged and isinstance(came, _Stream):
                answer = replace(
                    streamed(events=came.events, seconds=flight.seconds(now=loop.time())), fault=came.went_wrong
                )
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
            if attempt.asked is not None:
                attempt.asked.end(answer=answer, code=code)
            if judged:
                # The client has it first.
                loop.call_soon(functools.partial(self._judge, attempt, request_id, answer, counted=flight.counted))

    def _whole_answer(
        self, attempt: _Attempt, answer: Answer, *, sender: Sender, headers: dict[str, str]
    ) -> web.Response:
        """What the client gets of an answer that came at once: the version's, or an error."""
        if answer.status == 200 and answer.fault is None:
            document, status = sender.own(answer.document), 200
        elif answer.status >= 400:
            document, status = error_in(answer.document, status=answer.status), answer.status
        else:
            document, status = error_body(status=502, message=f"no usable answer: {answer.problem}"), 502
        body = json.dumps(document).encode()
        seconds = self.config.timeout_seconds
        return ReadInTime(attempt.incoming.request, seconds=seconds, status=status, body=body, headers=headers)

    async def _first_event(
        self, attempt: _Attempt, *, url: str, flight: Flight, sender: Sender
    ) -> tuple[Answer | _Stream, str | None]:
        """Send the request and wait for the answer: all of it, or the first event of a stream; and `Retry-After`. Until
        then the client has seen nothing, and a variant that is left is not waited for."""
        waiting = self._post(attempt, url=url, flight=flight, sender=sender)
        if flight.overdue_seconds is None:
            return await waiting
        task = asyncio.ensure_future(waiting)
        flight.upstream = task
        try:
            return await task
        except asyncio.CancelledError:
            if flight.given_up is None or asyncio.current_task().cancelling():  # type: ignore[union-attr]
                task.cancel()
                raise
            raise _RetryError(reason=flight.given_up, what="it was not waited for any longer") from None
        finally:
            flight.upstream = None

    async def _post(
        self, attempt: _Attempt, *, url: str, flight: Flight, sender: Sender
    ) -> tuple[Answer | _Stream, str | None]:
        loop = asyncio.get_running_loop()
        upstream = await self._connected(attempt, url=url, flight=flight)
        try:
            streams = upstream.content_type == "text/event-stream"
            if upstream.status == 200 and streams is not attempt.incoming.parsed.stream:
                upstream.close()
                fault = f"it answers {'' if streams else 'not '}in a stream"
                return Answer(status=200, fault=fault, seconds=loop.time() - flight.began), None
            if upstream.status == 200 and streams:
                return await self._begun(upstream, flight=flight, sender=sender), None
            async with upstream:
                body = await whole_body(upstream)
            answer = whole(status=upstream.status, body=body, seconds=loop.time() - flight.began)
            return answer, upstream.headers.get("Retry-After")
        except BaseException:
            upstream.close()
            raise

    async def _connected(self, attempt: _Attempt, *, url: str, flight: Flight) -> aiohttp.ClientResponse:
        """Wait for the head of the answer. The last version that can be asked, where it has answered before, is asked
        again while there is no connection to it: no server has seen the request. It has failed all the same, as one
        that another stands in for."""
        loop = asyncio.get_running_loop()
        stays = not attempt.elsewhere and not attempt.last and attempt.key[2] in self.live.heard
        until = loop.time() + _NO_WAY_SECONDS if stays else 0.0
        while True:
            # `connect` holds for what comes before the socket too: a name that is not resolved.
            left = max(attempt.due - loop.time(), 0.001)
            timeout = aiohttp.ClientTimeout(total=left, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS)
            try:
                return await self.session.post(
                    url + attempt.incoming.path,
                    data=attempt.incoming.body,
                    headers=_sent_headers(attempt),
                    timeout=timeout,
                    allow_redirects=False,
                )
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if loop.time() >= min(until, attempt.due - _PAUSE_SECONDS):
                    raise
                self.flights.give_up(flight, "unreachable", what=said_of(error))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _begun(self, upstream: aiohttp.ClientResponse, *, flight: Flight, sender: Sender) -> _Stream | Answer:
        """Wait for the first event of a stream, for as long as a client may be left without a word. An answer: it has
        failed before that."""
        loop, events, ready = asyncio.get_running_loop(), EventStream(own=sender.own), b""
        until = loop.time() + self.config.heartbeat_seconds
        quiet = min(self.config.heartbeat_seconds, flight.overdue_seconds or self.config.heartbeat_seconds)
        parts = parts_of(upstream.content, quiet_seconds=quiet)
        async for part in parts:
            ready += events.feed(part)
            if events.said_error:
                break
            if events.has_begun or loop.time() >= until:
                return _Stream(upstream=upstream, parts=parts, events=events, ready=ready)
        ready += events.end()
        if events.has_begun:
            return _Stream(upstream=upstream, parts=parts, events=events, ready=ready)
        upstream.close()
        return streamed(events=events, seconds=loop.time() - flight.began)

    async def _pass_stream(
        self, attempt: _Attempt, begun: _Stream, *, headers: dict[str, str], flight: Flight
    ) -> tuple[web.StreamResponse, Answer]:
        """Hand events on as they come; where the version breaks off, another one that says so."""
        loop, events, what = asyncio.get_running_loop(), begun.events, None
        head = {**_HEAD_OF_STREAMS, **headers}
        async with (
            begun.upstream,
            ClientStream(request=attempt.incoming.request, headers=head, due=attempt.due, waits=flight.waits) as stream,
        ):
            try:
                await stream.write(begun.ready or HEARTBEAT)
                heard = loop.time()
                async for part in begun.parts:
                    heard = loop.time() if part else heard
                    if flight.overdue_seconds is not None and loop.time() - heard >= flight.overdue_seconds:
                        raise _SilentError
                    ready = events.feed(part) if part else HEARTBEAT
                    if ready:
                        await stream.write(ready)
                rest = events.end()
                if rest:
                    await stream.write(rest)
                if events.fault is not None:
                    what = f"the answer broke off: {events.fault}"
            except _SilentError:
                what = f"the answer broke off: nothing came for {flight.overdue_seconds:g} s"
            except (aiohttp.ClientError, TimeoutError) as error:
                late = isinstance(error, TimeoutError)
                if late and flight.waits.seconds(now=loop.time()) > _HELD_UP * self.config.timeout_seconds:
                    raise HungUpError from error
                what = "the answer broke off"
                if late:
                    what = f"the answer was not complete within {self.config.timeout_seconds:g} s"
            answer = streamed(events=events, seconds=flight.seconds(now=loop.time()))
            if what is not None:
                begun.broke_off, answer = what, replace(answer, fault=what)
                if not events.said_error:
                    await stream.break_off(message=what)
            await stream.end()
        return stream.response, answer

    def _judge(self, attempt: _Attempt, request_id: str, answer: Answer, *, counted: bool) -> None:
        """Count a bad answer, and maybe compare it with the candidate's: of each user as many as are counted."""
        parsed = attempt.incoming.parsed
        fault = fault_of_answer(answer, json_expected=parsed.json_expected, limited=parsed.limited)
        if fault is not None and not answer.failed:
            self.votes.found_bad(request_id)
        if counted:
            self.comparator.offer(
                path=attempt.incoming.path,
                body=attempt.incoming.body,
                variant=attempt.key[2],
                stable=answer,
                json_expected=parsed.json_expected,
                limited=parsed.limited,
            )


def _sent_headers(attempt: _Attempt) -> CIMultiDict[str]:
    """What a version's server is told beside the request itself: of a client's headers only those of its trace."""
    if attempt.asked is not None:
        return CIMultiDict({**_SENT_HEADERS, **attempt.asked.headers})
    headers = attempt.incoming.request.headers
    return CIMultiDict({**_SENT_HEADERS, **carried(headers)}) if TRACEPARENT in headers else _SENT_HEADERS


def refuse(*, status: int, message: str, code: str | None = None, param: str | None = None) -> web.Response:
    """An error of our own in OpenAI's form."""
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    body = error_body(status=status, message=message, code=code, param=param)
    return web.json_response(body, status=status, headers=headers)
