"""The servers around the gateway in its benchmark, each run as a process of its own.

    python -m tests.bench.gateway_servers upstream PORT            answers every request with one canned chat completion
    python -m tests.bench.gateway_servers floor PORT UPSTREAM      passes requests on with aiohttp and does nothing else

The upstream speaks just enough HTTP/1.1 to answer keep-alive requests with a body, so that it costs next to nothing.
The floor is what any proxy written with aiohttp pays at least.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys

import aiohttp
from aiohttp import web

_TEXT = (
    "Thank you for your message. Your order was sent on Monday and should reach you within two working days. You can "
    "follow it with the number in the mail that we sent you; tell us if it has not arrived by Thursday."
)
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "router",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": _TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 61, "completion_tokens": 44, "total_tokens": 105},
    }
).encode()
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_ANSWER)
_CANNED = _HEAD + _ANSWER


class Canned(asyncio.Protocol):
    """Answers each request of a connection as soon as its body is complete."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A part of a request, one, or several."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            whole = end + 4 + _content_length(self._buffer[:end])
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            assert self._transport is not None
            self._transport.write(_CANNED)


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


async def serve_canned(*, port: int) -> None:
    """Answer until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Canned, "127.0.0.1", port)
    await server.serve_forever()


async def serve_floor(*, port: int, upstream: str) -> None:
    """Pass on until the process is ended: body, status and content type."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1024), auto_decompress=False) as session:

        async def pass_on(request: web.Request) -> web.Response:
            body = await request.read()
            kind = {"Content-Type": "application/json"}
            async with session.post(upstream + request.path, data=body, headers=kind) as answer:
                return web.Response(
                    body=await answer.read(),
                    status=answer.status,
                    headers={"Content-Type": answer.headers["Content-Type"]},
                )

        application = web.Application()
        application.router.add_post("/v1/chat/completions", pass_on)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


def main() -> None:
    """Serve."""
    gc.freeze()
    kind, port = sys.argv[1], int(sys.argv[2])
    asyncio.run(serve_canned(port=port) if kind == "upstream" else serve_floor(port=port, upstream=sys.argv[3]))


if __name__ == "__main__":
    main()
