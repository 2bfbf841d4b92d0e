"""Clients that take their time to read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.local.eventually import eventually
from tests.patience import HANGS_S
from tests.staying import stays

from finetune_gateway.client_stream import ReadInTime

_SIZE = 20_000_000
"""Bytes: more than an operating system keeps for a connection."""


async def serve(times: Iterator[float], *, asked: list[web.Request]) -> TestServer:
    """A server of long answers. `times`: how many seconds clients have to read each of them."""

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return ReadInTime(request, seconds=next(times), status=200, body=b"x" * _SIZE, headers={})

    app = web.Application()
    app.router.add_get("/", answer)
    server = TestServer(app)
    await server.start_server()
    return server


async def ask(server: TestServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return reader, writer


async def read(reader: asyncio.StreamReader) -> int:
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout=HANGS_S)
    return len(await asyncio.wait_for(reader.readexactly(_SIZE), timeout=HANGS_S))


async def test_the_time_to_read_an_answer_ends_with_it() -> None:
    """The next one on the same connection has a time of its own."""
    server = await serve(iter((2.0, 1000.0)), asked=[])
    reader, writer = await ask(server)
    assert await read(reader) == _SIZE
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await stays(lambda: not reader.at_eof(), seconds=2.5)  # for longer than the first one could be read
    assert await read(reader) == _SIZE
    writer.close()
    await server.close()


async def test_an_answer_that_is_not_read_in_its_time_is_given_up() -> None:
    asked: list[web.Request] = []
    server = await serve(iter((0.2,)), asked=asked)
    reader, writer = await ask(server)
    await eventually(lambda: asked and (asked[0].transport is None or asked[0].transport.is_closing()))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await read(reader)
    writer.close()
    await server.close()
