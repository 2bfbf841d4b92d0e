"""A load generator that costs little: HTTP/1.1 over kept-alive connections, one request at a time on each.

Open loop: requests are due at random times (Poisson) whether or not earlier ones were answered, as from many
independent users. Closed loop: each of some connections sends its next request when the last one was answered; the most
that a server can do.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

_MAXIMUM_CONNECTIONS = 512


@dataclass(kw_only=True)
class Load:
    """What came of the requests of one measurement. Times in seconds."""

    latencies: list[float] = field(default_factory=list)
    """From sending a request to the last byte of its answer."""
    late: list[float] = field(default_factory=list)
    """How much later than due a request was sent: what the generator itself cannot do in time."""
    errors: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0


class Connection(asyncio.Protocol):
    """One kept-alive connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed it."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before the answer was complete"))

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        self._buffer += data
        status = complete_status(self._buffer)
        if status is not None and self._answer is not None and not self._answer.done():
            self._buffer = b""
            self._answer.set_result(status)

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """Send one request; gives its status when the answer is complete."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._answer.set_exception(ConnectionResetError("the connection was closed"))
        else:
            self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()


def complete_status(answer: bytes) -> int | None:
    """The status of an answer, once all of it is there."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = answer[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        line_end = head.find(b"\r\n", at + 2)
        length = int(head[at + 17 : line_end if line_end >= 0 else len(head)])
        whole = len(answer) >= end + 4 + length
    else:
        whole = answer.endswith(b"0\r\n\r\n")
    return int(answer[9:12]) if whole else None


def request_bytes(*, port: int, body: bytes) -> bytes:
    """A chat request as a client sends it."""
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer sk-bench\r\nUser-Agent: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def open_loop(*, port: int, body: bytes, rate: float, seconds: float, seed: int) -> Load:
    """`rate` requests a second for `seconds`. The same seed gives the same times."""
    load = Load()
    idle: list[Connection] = []
    under_way: set[asyncio.Task[None]] = set()
    request, rng, loop = request_bytes(port=port, body=body), random.Random(seed), asyncio.get_running_loop()

    async def one(due: float) -> None:
        connection = idle.pop() if idle else await _connect(port)
        began = time.perf_counter()
        try:
            status = await connection.ask(request)
        except OSError:
            load.errors += 1
            return
        load.latencies.append(time.perf_counter() - began)
        load.late.append(began - due)
        load.errors += status != 200
        idle.append(connection)

    idle += [await _connect(port) for _ in range(8)]
    begun = time.perf_counter()
    due = begun
    while due < begun + seconds:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        if len(under_way) < _MAXIMUM_CONNECTIONS:
            task = loop.create_task(one(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        else:
            load.errors += 1
        due += rng.expovariate(rate)
    if under_way:
        _, hung = await asyncio.wait(under_way, timeout=30)
        load.errors += len(hung)
        for task in hung:
            task.cancel()
    load.seconds = time.perf_counter() - begun
    for connection in idle:
        connection.close()
    return load


async def closed_loop(*, port: int, body: bytes, connections: int, seconds: float) -> Load:
    """As many requests as are answered, on this many connections."""
    load = Load()
    request = request_bytes(port=port, body=body)
    begun = time.perf_counter()
    until = begun + seconds

    async def one() -> None:
        connection = await _connect(port)
        while (began := time.perf_counter()) < until:
            try:
                status = await connection.ask(request)
            except OSError:
                load.errors += 1
                connection.close()
                connection = await _connect(port)
                continue
            load.latencies.append(time.perf_counter() - began)
            load.errors += status != 200
        connection.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    load.seconds = time.perf_counter() - begun
    return load


async def _connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection
