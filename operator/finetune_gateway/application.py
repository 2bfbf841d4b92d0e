"""The HTTP surface: /v1/chat/completions, /v1/completions, /v1/classify, /v1/models, /v1/feedback."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import random
import time
from dataclasses import dataclass, field

from aiohttp import web

from finetune_api.routes import Routes
from finetune_gateway.access_log import AccessLog
from finetune_gateway.client_stream import HungUpError
from finetune_gateway.config import GatewayConfig
from finetune_gateway.live_routes import LiveRoutes
from finetune_gateway.metrics import Metrics
from finetune_gateway.openai_format import BadRequestError, parse_request
from finetune_gateway.peers import Peers, PeerUnavailableError
from finetune_gateway.proxy import Incoming, Proxy, refuse
from finetune_gateway.routing import user_position
from finetune_gateway.votes import Outcome, Vote, Votes

logger = logging.getLogger(__name__)
USER_HEADER = "X-Finetune-User"
_CLIENT = web.RequestKey("client", str)
"""The name that goes with the client's key."""
_KEYS_SECONDS = 5.0
_REQUEST_ID_LENGTH = 1024
_HUNG_UP = 499
"""In the access log: the client went before it had its answer."""
_TASKS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("Chat",),
    "/v1/completions": ("CausalLM", "Seq2Seq", "Chat"),
    "/v1/classify": ("SequenceClassification",),
}


@dataclass(kw_only=True)
class ApiKeys:
    """The clients' keys from a mounted Secret, read again as it changes."""

    config: GatewayConfig
    _keys: dict[bytes, str] = field(default_factory=dict)
    _read_at: float = float("-inf")

    def client(self, authorization: str | None) -> str | None:
        """The client's name; None for a key that is not known. Everybody is `anonymous` where no keys are set."""
        if self.config.keys_folder is None:
            return "anonymous"
        self._refresh()
        offered = (authorization or "").removeprefix("Bearer ").strip().encode("utf-8", "surrogatepass")
        found = None
        for key, name in self._keys.items():
            if hmac.compare_digest(key, offered):
                found = name
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._read_at < _KEYS_SECONDS or self.config.keys_folder is None:
            return
        self._read_at = now
        files = [path for path in self.config.keys_folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        self._keys = {path.read_bytes().strip(): path.name for path in files if path.read_bytes().strip()}


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
        for path in _TASKS:
            app.router.add_post(path, self._forward)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/feedback", self._feedback)
        return app

    @web.middleware
    async def _outermost(self, request: web.Request, handler: object) -> web.StreamResponse:
        began = time.monotonic()
        client = self.keys.client(request.headers.get("Authorization"))
        if client is None:
            response: web.StreamResponse = refuse(
                status=401, message="unknown API key; send `Authorization: Bearer KEY`"
            )
        elif self.in_flight >= self.config.concurrency:
            response = refuse(status=429, message=f"{self.config.concurrency} requests are under way; try again")
        else:
            request[_CLIENT] = client
            self.in_flight += 1
            self.idle.clear()
            try:
                response = await handler(request)  # type: ignore[operator]
            except web.HTTPException as error:
                response = refuse(status=error.status, message=error.reason)
            except HungUpError:
                if request.transport is not None:
                    request.transport.abort()
                response = web.Response(status=_HUNG_UP)  # for the log: nobody listens
            except asyncio.CancelledError:
                self._log(request, status=_HUNG_UP, began=began, client=client)
                raise
            finally:
                self.in_flight -= 1
                if self.in_flight == 0:
                    self.idle.set()
        if self.draining:
            response.force_close()
        self._log(request, status=response.status, began=began, client=client)
        return response

    def _log(self, request: web.Request, *, status: int, began: float, client: str | None) -> None:
        seconds = time.monotonic() - began
        self.access_log.add(
            method=request.method, path=request.rel_url.raw_path, status=status, seconds=seconds, client=client
        )

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        routes = self.live.current
        if routes is None:
            return refuse(status=503, message="no routes yet: the endpoint has no version to serve")
        if routes.task not in _TASKS[request.path]:
            return refuse(status=404, message=f"this endpoint's task is {routes.task}; {request.path} is not offered")
        body = await self._read(request)
        if isinstance(body, web.Response):
            return body
        try:
            parsed = parse_request(body=body, model=routes.model)
        except BadRequestError as error:
            return refuse(status=400, message=str(error))
        user = request.headers.get(USER_HEADER) or parsed.user or self._keyed(request)
        incoming = Incoming(
            request=request,
            path=request.path,
            body=body,
            parsed=parsed,
            user=user,
            position=self._position(routes=routes, user=user),
        )
        return await self.proxy.answer(incoming)

    def _keyed(self, request: web.Request) -> str | None:
        client = request[_CLIENT]
        return None if client == "anonymous" else f"key:{client}"

    @staticmethod
    def _position(*, routes: Routes, user: str | None) -> float:
        if user is None:
            return random.random() * 100.0  # noqa: S311 - nobody to stick to
        return user_position(salt=routes.sticky_salt or routes.endpoint, user=user)

    async def _read(self, request: web.Request) -> bytes | web.Response:
        limit = self.config.body_bytes
        if request.content_length is not None and request.content_length > limit:
            too_large = self._too_large()
            too_large.force_close()
            return too_large
        try:
            if request.content.is_eof():  # all of it came with the head, as most do: no timer is needed
                return await request.read()
            async with asyncio.timeout(self.config.body_timeout_seconds):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._too_large()
        except TimeoutError:
            slow = refuse(status=408, message=f"the body did not arrive within {self.config.body_timeout_seconds:g} s")
            slow.force_close()
            return slow

    def _too_large(self) -> web.Response:
        return refuse(status=413, message=f"the body is larger than {self.config.body_bytes} bytes")

    async def _models(self, request: web.Request) -> web.StreamResponse:
        routes = self.live.current
        served = [] if routes is None else [routes.model]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "finetune-operator"} for name in served]
        return web.json_response({"object": "list", "data": data})

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


def _ballot(body: bytes) -> tuple[str, Vote]:
    """Request id and rating. Raises ValueError."""
    try:
        document = json.loads(body)
        request_id, rating = document["request_id"], document["rating"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('expected {"request_id": "...", "rating": "up" or "down"}') from None
    if rating not in ("up", "down") or not isinstance(request_id, str) or len(request_id) > _REQUEST_ID_LENGTH:
        raise ValueError("rating must be `up` or `down`, request_id the X-Request-Id of an answer")
    return request_id, rating


def _answer_to_vote(outcome: Outcome) -> web.Response:
    if outcome == "unknown":
        message = "no answer of this endpoint has that request id, or the gateway that gave it is gone"
        return refuse(status=404, message=message)
    return web.json_response({"outcome": outcome}, status=200 if outcome == "counted" else 409)
