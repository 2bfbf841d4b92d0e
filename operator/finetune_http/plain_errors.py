"""Errors of the HTTP library without what they quote: a malformed request holds a prompt and a key, a malformed answer
an answer, and neither belongs into a log, a report or an error message."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

logger = logging.getLogger(__name__)
Refuse = Callable[[int, str], web.Response]
"""An error of the server's own, from its status and words."""
_MALFORMED = "the request is not valid HTTP: check its first line, header lines, lengths and chunks"
ENCODINGS = "Content-Encoding of a request may be gzip, deflate or identity"


def said_of(error: BaseException) -> str:
    """An error in words: the system's own for connections, which quote nothing; of all others the kind only."""
    kind = type(error).__name__
    quotes_nothing = isinstance(error, OSError) and not isinstance(error, aiohttp.ClientResponseError) and str(error)
    return f"{kind}: {error}"[:300] if quotes_nothing else kind


class _Connection(web.RequestHandler):
    """A client's connection whose own errors say nothing of what the client sent."""

    __slots__ = ("_refuse",)

    def __init__(self, manager: web.Server, *, refuse: Refuse, **settings: object) -> None:
        super().__init__(manager, **settings)  # type: ignore[arg-type]
        self._refuse = refuse

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be read (below 500), or to what our own code failed at."""
        kind = type(exc).__name__ if exc is not None else "no answer"
        if isinstance(exc, ContentEncodingError):  # one that the library knows and cannot take apart here
            status = 415
        if status < 500:
            logger.info("a malformed request of %s refused: %s", request.remote, kind)
        else:
            where = "".join(traceback.format_tb(exc.__traceback__)) if exc is not None else ""
            logger.error("a request failed: %s\n%s", kind, where)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer was sent already")
        refused = ENCODINGS if status == 415 else _MALFORMED
        words = refused if status < 500 else "this server failed at the request; try again"
        answer = self._refuse(status, words)
        answer.force_close()
        return answer


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
    """Runs an application on connections whose errors quote nothing."""

    def __init__(self, app: web.Application, *, refuse: Refuse, **settings: object) -> None:
        super().__init__(app, **settings)  # type: ignore[arg-type]
        self._refuse = refuse

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, refuse=self._refuse, **made._kwargs)
