"""The HTTP surface: /v1/chat/completions, /v1/completions, /v1/classify, /v1/models, /v1/feedback."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from finetune_api.routes import Routes
from finetune_api.shared_fields import Task
from finetune_api.tasks import TASKS
from finetune_gateway import cross_origin
from finetune_gateway.access_log import AccessLog
from finetune_gateway.api_keys import ANONYMOUS, ApiKeys
from finetune_gateway.client_stream import HungUpError
from finetune_gateway.config import GatewayConfig
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.openai_format import BadRequestError, no_such_model, parse_request
from finetune_gateway.packed_bodies import ENCODINGS, unpacked
from finetune_gateway.peers import Peers, PeerUnavailableError
from finetune_gateway.proxy import ARM, Incoming, Proxy, refuse
from finetune_gateway.request_id import ANSWER_HEADER, REQUEST_HEADER, given_id
from finetune_gateway.routing import user_position
from finetune_gateway.tally import User
from finetune_gateway.votes import Outcome, Vote, Votes

logger = logging.getLogger(__name__)
USER_HEADER = "X-Finetune-User"
_CLIENT = web.RequestKey("client", str)
"""The name that goes with the client's key."""
_REQUEST_ID_LENGTH = 128
_HUNG_UP = 499
"""In the access log: the client went before it had its answer."""
_PATHS = tuple(dict.fromkeys(path for kind in TASKS.values() for path in kind.paths))
_MODELS, _FEEDBACK = "/v1/models", "/v1/feedback"


@dataclass(kw_only=True)
class Application:
    """Reads, checks and answers requests."""

    config: GatewayConfig
    live: LiveRoutes
    proxy: Proxy
    keys: ApiKeys
    votes: Votes
    peers: Peers
    metrics: Metrics
    access_log: AccessLog
    in_flight: int = 0
    draining: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever no request is under way."""

    def build(self) -> web.Application:
        """The aiohttp application."""
        self.metrics.in_flight.set_function(lambda: self.in_flight)
        app = web.Application(client_max_size=self.config.body_bytes + 1, middlewares=[self._outermost])
        for path in _PATHS:
            app.router.add_post(path, self._forward)
        app.router.add_get(_MODELS, self._models)
        app.router.add_get(_MODELS + "/{name:.+}", self._model)
        app.router.add_post(_FEEDBACK, self._feedback)
        app.on_response_prepare.append(self._complete_head)
        return app

    def ids_of_nobody(self) -> dict[str, str]:
        """The head of an answer that no version has to do with: an id that looks like any other."""
        answer_id = self.votes.id_of_nobody()
        return {ANSWER_HEADER: answer_id, REQUEST_HEADER: answer_id}

    async def _complete_head(self, request: web.Request, response: web.StreamResponse) -> None:
        """What every answer says, streams and errors too."""
        if REQUEST_HEADER in response.headers:
            return
        if ANSWER_HEADER not in response.headers:
            response.headers.update(self.ids_of_nobody())
        response.headers[REQUEST_HEADER] = given_id(request.headers) or response.headers[ANSWER_HEADER]
        allowed = self.config.allowed_origins
        response.headers.update(cross_origin.headers_for(origin=request.headers.get("Origin"), allowed=allowed))

    @web.middleware
    async def _outermost(self, request: web.Request, handler: object) -> web.StreamResponse:
        began = time.monotonic()
        client = self.keys.client(request.headers)
        preflight = cross_origin.is_preflight(method=request.method, headers=request.headers)
        response: web.StreamResponse
        if preflight and self.config.allowed_origins:
            response = web.Response(status=204, headers=cross_origin.preflight_headers(request.headers))
        elif client is None:
            words = "unknown API key; send `Authorization: Bearer KEY` or `api-key: KEY`"
            response = refuse(status=401, message=words)
        elif self.in_flight >= self.config.concurrency:
            response = refuse(status=429, message=f"{self.config.concurrency} requests are under way; try again")
        else:
            request[_CLIENT] = client
            self.in_flight += 1
            self.idle.clear()
            try:
                response = await handler(request)  # type: ignore[operator]
            except web.HTTPException as error:
                response = _refused_by_router(request, error)
            except HungUpError:
                if request.transport is not None:
                    request.transport.abort()
                response = web.Response(status=_HUNG_UP)  # for the log: nobody listens
            except asyncio.CancelledError:
                self._log(request, None, began=began, client=client)
                raise
            finally:
                self.in_flight -= 1
                if self.in_flight == 0:
                    self.idle.set()
        if self.draining:
            response.force_close()
        if not response.prepared:
            await self._complete_head(request, response)
        self._log(request, response, began=began, client=client)
        return response

    def _log(
        self, request: web.Request, response: web.StreamResponse | None, *, began: float, client: str | None
    ) -> None:
        if not self.access_log.enabled:
            return
        self.access_log.add(
            method=request.method,
            path=request.rel_url.raw_path,
            status=_HUNG_UP if response is None else response.status,
            seconds=time.monotonic() - began,
            client=client,
            answer_id=None if response is None else response.headers[ANSWER_HEADER],
            arm=None if response is None else response.get(ARM),
            request_id=given_id(request.headers),
        )

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        routes = self.live.current
        if routes is None:
            return refuse(status=503, message="no routes yet: the endpoint has no version to serve")
        if request.path not in TASKS[routes.task].paths:
            return _not_offered(request.path, task=routes.task)
        body = await self._read(request)
        if isinstance(body, web.Response):
            return body
        try:
            parsed = parse_request(body=body, model=routes.model)
        except BadRequestError as error:
            return _refused(error)
        named = request.headers.get(USER_HEADER) or parsed.user
        client = request[_CLIENT]
        has_key = client != ANONYMOUS
        incoming = Incoming(
            request=request,
            path=request.path,
            body=parsed.body,
            parsed=parsed,
            user=User(source=client if has_key else request.remote or "", has_key=has_key, name=named),
            position=self._position(routes=routes, user=named),
        )
        return await self.proxy.answer(incoming)

    @staticmethod
    def _position(*, routes: Routes, user: str | None) -> float:
        if user is None:
            return random.random() * 100.0  # noqa: S311 - nobody to stick to
        return user_position(salt=routes.sticky_salt or routes.endpoint, user=user)

    async def _read(self, request: web.Request) -> bytes | web.Response:
        limit = self.config.body_bytes
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ENCODINGS:
            return refuse(status=415, message="Content-Encoding of a request may be gzip, deflate or identity")
        if request.content_length is not None and request.content_length > limit:
            too_large = self._too_large()
            too_large.force_close()
            return too_large
        try:
            if request.content.is_eof():  # all of it came with the head, as most do: no timer is needed
                packed = await request.read()
            else:
                async with asyncio.timeout(self.config.body_timeout_seconds):
                    packed = await request.read()
            body = unpacked(packed, encoding=encoding, most=limit)
            return self._too_large() if body is None else body
        except web.HTTPRequestEntityTooLarge:
            return self._too_large()
        except (ValueError, web.RequestPayloadError, aiohttp.ClientPayloadError, HttpProcessingError):
            words = f"the body is not what its head says: {encoding or 'its chunks'} cannot be read"
            broken = refuse(status=400, message=words, code="invalid_body")
            broken.force_close()
            return broken
        except TimeoutError:
            slow = refuse(status=408, message=f"the body did not arrive within {self.config.body_timeout_seconds:g} s")
            slow.force_close()
            return slow

    def _too_large(self) -> web.Response:
        return refuse(status=413, message=f"the body is larger than {self.config.body_bytes} bytes")

    async def _models(self, request: web.Request) -> web.StreamResponse:
        routes = self.live.current
        data = [] if routes is None else [self._card(routes)]
        return web.json_response({"object": "list", "data": data})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        routes = self.live.current
        if routes is None or request.match_info["name"] != routes.model:
            return _refused(no_such_model(model=self.config.endpoint))
        return web.json_response(self._card(routes))

    @staticmethod
    def _card(routes: Routes) -> dict[str, object]:
        return {"id": routes.model, "object": "model", "created": 0, "owned_by": "finetune-operator"}

    async def _feedback(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if isinstance(body, web.Response):
            return body
        try:
            request_id, rating = _ballot(body)
        except ValueError as error:
            return refuse(status=400, message=str(error))
        issuer = self.votes.issued_elsewhere(request_id)
        try:
            outcome = (
                self.votes.vote(request_id=request_id, rating=rating)
                if issuer is None
                else await self.peers.vote(issuer=issuer, request_id=request_id, rating=rating)
            )
        except PeerUnavailableError as error:
            logger.warning("a vote for another gateway: %s", error)
            return refuse(status=503, message="the gateway that gave this answer does not answer now; try again")
        return _answer_to_vote(outcome)

    async def vote_of_peer(self, request: web.Request) -> web.StreamResponse:
        """A vote that another gateway got from a client, about an answer of this one."""
        try:
            request_id, rating = _ballot(await request.read())
        except ValueError as error:
            return refuse(status=400, message=str(error))
        return web.json_response({"outcome": self.votes.vote(request_id=request_id, rating=rating)})


def _refused(error: BadRequestError) -> web.Response:
    return refuse(status=error.status, message=str(error), code=error.code, param=error.param)


def _not_offered(path: str, *, task: Task) -> web.Response:
    use = " or ".join(TASKS[task].paths)
    return refuse(status=404, message=f"{path} is not offered: this endpoint's task is {task}; use {use}")


def _refused_by_router(request: web.Request, error: web.HTTPException) -> web.Response:
    use = f"{', '.join((*_PATHS, _MODELS))} or {_FEEDBACK}"
    words = {404: f"there is no such path here; use {use}", 405: f"{request.method} is not offered here"}
    answer = refuse(status=error.status, message=words.get(error.status, error.reason))
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer


def _ballot(body: bytes) -> tuple[str, Vote]:
    """Request id and rating. Raises ValueError."""
    try:
        document = json.loads(body)
        request_id, rating = document["request_id"], document["rating"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('expected {"request_id": "...", "rating": "up" or "down"}') from None
    if rating not in ("up", "down") or not isinstance(request_id, str) or len(request_id) > _REQUEST_ID_LENGTH:
        raise ValueError(f"rating must be `up` or `down`, request_id the {ANSWER_HEADER} of an answer")
    return request_id, rating


def _answer_to_vote(outcome: Outcome) -> web.Response:
    if outcome == "unknown":
        message = "no answer of this endpoint has that id, or its gateway is gone or has given a million others since"
        return refuse(status=404, message=message, code="answer_not_found", param="request_id")
    return web.json_response({"outcome": outcome}, status=409 if outcome == "already" else 200)
