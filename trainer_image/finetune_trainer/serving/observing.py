"""Around the application: counts and logs requests, bounds their bodies, and tells when none is under way."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.wire import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

access_log = logging.getLogger("finetune_trainer.access")
MOST_BODY_BYTES = 16 << 20
"""More than any context holds; gateways allow less."""
_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/models", "/finetune/probes")
_QUIET = ("/healthz", "/readyz", "/metrics")
_HUNG_UP = 499


def log_json_lines() -> None:
    """Access log lines are JSON objects and nothing else."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_log.handlers = [handler]
    access_log.propagate = False


class Observed:
    """The ASGI application that is served: `app` with what every request has in common."""

    def __init__(self, app: AsgiApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self.in_flight = 0
        self.draining = False
        """Answers now tell clients to use another connection next time."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        request = _Request(scope=scope, receive=receive, send=send, owner=self)
        self.in_flight += 1
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, request.receive_bounded, request.send_counted)
        finally:
            self.in_flight -= 1
            self._metrics.in_flight.dec()
            self._tell(request)

    def _tell(self, request: _Request) -> None:
        seconds = time.monotonic() - request.began
        path = request.scope["path"]
        route = path if path in _ROUTES else "other"
        self._metrics.requests.labels(route, str(request.status)).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if request.status == _HUNG_UP:
            self._metrics.abandoned.inc()
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": request.scope["method"],
            "path": path[:200],
            "status": request.status,
            "seconds": round(seconds, 4),
            **request.scope.get("state", {}).get("log", {}),
        }
        access_log.info(json.dumps(line))


class _Request:
    """One request as it passes."""

    def __init__(self, *, scope: Scope, receive: Receive, send: Send, owner: Observed) -> None:
        self.scope = scope
        self.began = time.monotonic()
        self.status = _HUNG_UP
        """Until an answer has been sent to its end."""
        self._receive = receive
        self._send = send
        self._owner = owner
        self._bytes = 0
        self._code = _HUNG_UP

    async def receive_bounded(self) -> Message:
        """What the client sends. Raises RequestError (413) past the limit."""
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > MOST_BODY_BYTES:
            raise RequestError(f"the body is larger than {MOST_BODY_BYTES} bytes", status=413)
        return message

    async def send_counted(self, message: Message) -> None:
        """Send on, and remember how it went."""
        if message["type"] == "http.response.start":
            self._code = message["status"]
            # After an error the rest of the body may still be on its way: the connection is of no more use.
            if self._owner.draining or self._bytes > MOST_BODY_BYTES:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.status = self._code
