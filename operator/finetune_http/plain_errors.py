"""Errors of the HTTP library without what they quote: a malformed request holds a prompt and a key, a malformed answer
an answer, and neither belongs into a log, a report or an error message."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

logger = logging.getLogger(__name__)
Refuse = Callable[[int, str], web.Response]
"""An error of the server's own, from its status and words."""
_MALFORMED = "the request is not valid HTTP: check its first line, header lines, lengths and chunks"
_WORDS = {417: "Expect may be 100-continue"}


def said_of(error: BaseException) -> str:
    """An error in words: the system's own for connections, which quote nothing; of all others the kind only."""
    kind = type(error).__name__
    quotes_nothing = isinstance(error, OSError) and not isinstance(error, aiohttp.ClientResponseError) and str(error)
    return f"{kind}: {error}"[:300] if quotes_nothing else kind


class _Connection(web.RequestHandler):
    """A client's connection: its own errors say nothing of what the client sent, and it waits for that so long only."""

    __slots__ = ("_head_seconds", "_refuse")

    def __init__(self, manager: web.Server, *, refuse: Refuse, head_seconds: float, **settings: object) -> None:
        super().__init__(manager, **settings)  # type: ignore[arg-type]
        self._refuse, self._head_seconds = refuse, head_seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The library waits for a first request for ever; for others as long as it keeps a connection."""
        super().connection_made(transport)
        self._loop.call_later(self._head_seconds, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self._request_count == 0 and self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be read (below 500), or to what our own code failed at."""
        kind = type(exc).__name__ if exc is not None else "no answer"
        if status < 500:
            logger.info("a malformed request of %s refused: %s", request.remote, kind)
        else:
            where = "".join(traceback.format_tb(exc.__traceback__)) if exc is not None else ""
            logger.error("a request failed: %s\n%s", kind, where)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer was sent already")
        answer = self._refuse(status, _MALFORMED if status < 500 else "this server failed at the request; try again")
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. The library's own refusals are plain text and quote what they refuse."""
        if isinstance(resp, web.HTTPException):
            resp = self._refuse(resp.status, _WORDS.get(resp.status, resp.reason))
        return await super().finish_response(request, resp, start_time)


class _Server(web.Server):
    def __init__(self, made: web.Server, **settings: Any) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
        )
        self._settings = settings

    def __call__(self) -> _Connection:
        return _Connection(self, loop=self._loop, **self._settings)


class PlainRunner(web.AppRunner):
    """Runs an application on connections whose errors quote nothing. It gets bodies as they were sent: of packed ones
    the library does not see where the end is missing."""

    def __init__(self, app: web.Application, *, refuse: Refuse, head_seconds: float = 30.0, **settings: object) -> None:
        super().__init__(app, auto_decompress=False, **settings)  # type: ignore[arg-type]
        self._own = {"refuse": refuse, "head_seconds": head_seconds}

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, **self._own, **made._kwargs)
