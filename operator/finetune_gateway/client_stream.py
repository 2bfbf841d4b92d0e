"""An answer passed on to its client as it comes. Clients hang up, and read as slowly as they like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

_GRACE_SECONDS = 1.0
"""A version that takes too long is noticed first: its client is told, one that does not read is just let go."""
_LONGEST_ANSWER = 32 << 20
"""Bytes of an answer that comes at once: it is kept in memory while it is read."""


class ReadInTime(web.Response):
    """An answer that is sent as a whole. A client that does not read it within `seconds` is let go."""

    def __init__(
        self, request: web.Request, *, seconds: float, status: int, body: bytes, headers: Mapping[str, str]
    ) -> None:
        super().__init__(status=status, body=body, content_type="application/json", headers=headers)
        self._transport = request.transport
        self._seconds = seconds

    async def write_eof(self, data: bytes = b"") -> None:
        """Send it, and wait until next to nothing is left to send: the connection may serve its next request then."""
        if self._transport is None:
            return await super().write_eof(data)
        let_go = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        try:
            return await super().write_eof(data)
        finally:
            let_go.cancel()


async def whole_body(answer: aiohttp.ClientResponse) -> bytes:
    """All that a version sends. Raises aiohttp.ClientPayloadError where it is more than any answer is."""
    parts, size = [], 0
    while part := await answer.content.readany():
        parts.append(part)
        size += len(part)
        if size > _LONGEST_ANSWER:
            answer.close()
            raise aiohttp.ClientPayloadError
    return b"".join(parts)


async def parts_of(content: aiohttp.StreamReader, *, quiet_seconds: float) -> AsyncIterator[bytes]:
    """What a version sends, as it comes; nothing (b"") after each `quiet_seconds` without any."""
    while True:
        try:
            async with asyncio.timeout(quiet_seconds) as quiet:
                part = await content.readany()
        except TimeoutError:
            if not quiet.expired():
                raise
            yield b""
            continue
        if not part:
            return
        yield part


class HungUpError(ConnectionResetError):
    """The client is gone, or as good as gone. That says nothing about the version."""


@dataclass(kw_only=True)
class Waits:
    """How long a client has kept its version waiting: it took nothing of what was there."""

    _seconds: float = 0.0
    _since: float | None = None
    """By the event loop's clock: since when it does now."""

    async def on(self, sending: Awaitable[object]) -> None:
        """Wait until the client has taken enough. Raises HungUpError."""
        loop = asyncio.get_running_loop()
        self._since = began = loop.time()
        try:
            await sending
        except (ConnectionError, aiohttp.ClientConnectionError) as error:
            raise HungUpError from error
        finally:
            self._seconds += loop.time() - began
            self._since = None

    def seconds(self, *, now: float) -> float:
        """In all so far. `now`: by the event loop's clock."""
        return self._seconds + (now - self._since if self._since is not None else 0.0)


@dataclass(kw_only=True)
class ClientStream:
    """The client's side of one streamed answer. Use as a context manager: past `due` the client is let go."""

    request: web.Request
    headers: Mapping[str, str]
    due: float
    """By the event loop's clock: when the whole answer should be with the client."""
    waits: Waits
    response: web.StreamResponse = field(init=False)
    _let_go: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> ClientStream:
        """Send the head. Raises HungUpError."""
        self.response = web.StreamResponse(headers=self.headers)
        transport = self.request.transport
        if transport is None:
            raise HungUpError
        # One that does not read would hold its version's connection and a place among the requests for ever.
        self._let_go = asyncio.get_running_loop().call_at(self.due + _GRACE_SECONDS, transport.abort)
        try:
            await self.waits.on(self.response.prepare(self.request))
        except HungUpError:
            self._let_go.cancel()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """The connection may serve its next request."""
        if self._let_go is not None:
            self._let_go.cancel()

    async def write(self, chunk: bytes) -> None:
        """Send a part. Raises HungUpError."""
        await self.waits.on(self.response.write(chunk))

    async def end(self) -> None:
        """Nothing follows. Raises HungUpError."""
        await self.waits.on(self.response.write_eof())

    async def break_off(self, *, message: str) -> None:
        """Say in a last event that the answer is not complete. Raises HungUpError.

        The answer then ends as any other: its head has promised that the connection goes on.
        """
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        await self.write(b"data: %s\n\n" % json.dumps({"error": error}).encode())
