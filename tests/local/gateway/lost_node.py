"""Prints after how many seconds a request ends whose server is lost. In a network namespace of its own; 25 at most."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import time

import aiohttp
from aiohttp import web

from finetune_gateway.process import session_to_versions

_SET_FLAGS, _UP, _LIMIT_SECONDS = 0x8914, 0x1, 25.0  # netdevice(7)


def switch(*, up: bool) -> None:
    """The loopback device, on or off."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh22x", b"lo", _UP if up else 0))


async def main() -> None:
    """Ask, lose the network while the answer is waited for, and wait."""
    switch(up=True)
    asked = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(2 * _LIMIT_SECONDS)
        return web.Response()

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 8000).start()
    async with session_to_versions() as session:
        waiting = asyncio.create_task(session.post("http://127.0.0.1:8000/", data=b"x"))
        await asked.wait()
        switch(up=False)
        began = time.monotonic()
        try:
            async with asyncio.timeout(_LIMIT_SECONDS):
                await waiting
        except (aiohttp.ClientError, TimeoutError):
            print(time.monotonic() - began)


asyncio.run(main())
