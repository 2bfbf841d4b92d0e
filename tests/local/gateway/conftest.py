"""A real gateway process on loopback, in front of upstream servers whose behaviour a test sets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.patience import HANGS_S

from finetune_api.observations import OBSERVATIONS_ROUTE, Observations, ObservationsReply
from finetune_operator.kube.inboxes import ObservationInbox

ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class Upstream:
    """A version's server: answers with its own name, as it is told to."""

    name: str
    port: int = field(default_factory=free_port)
    status: int = 200
    delay: float = 0.0
    text: str | None = None
    break_after_chunks: int | None = None
    silent_after: int | None = None
    """Of a streamed answer's words, how many come."""
    endless: bool = False
    """Streams for as long as somebody listens."""
    go_on: asyncio.Event | None = None
    """Streams stop inside their first event until it is set."""
    open_streams: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[set[str]] = field(default_factory=list)
    """Lower-case names of the headers of each request seen."""
    traces: list[dict[str, str]] = field(default_factory=list)
    """The trace context of each request seen."""
    mirrored: list[str | None] = field(default_factory=list)
    """What each request seen says of copies and probes."""
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/finetune/probes", self._probes)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        document = await request.json()
        self.seen.append(document)
        self.headers.append({name.lower() for name in request.headers})
        context = {name: request.headers.get(name) for name in ("traceparent", "tracestate")}
        self.traces.append({name: value for name, value in context.items() if value is not None})
        self.mirrored.append(request.headers.get("X-Finetune-Mirrored"))
        await asyncio.sleep(self.delay)
        if self.status != 200:
            return web.json_response({"error": {"message": "broken"}}, status=self.status)
        text = self.text if self.text is not None else f"{self.name} says hello"
        if not document.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return web.json_response(
                {"id": "x", "object": "chat.completion", "created": 0, "model": "router", "choices": [choice]}
            )
        self.open_streams += 1
        try:
            return await self._stream(request, text=text)
        finally:
            self.open_streams -= 1

    async def _stream(self, request: web.Request, *, text: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while self.endless:
            await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "and so on"}}]}\n\n' * 300)
            await asyncio.sleep(0.001)
        for number, word in enumerate(text.split(" ")):
            if number == self.break_after_chunks:
                assert request.transport is not None
                request.transport.abort()
                return response
            if number == self.silent_after:
                await asyncio.sleep(3600)
            delta = {"choices": [{"index": 0, "delta": {"content": word + " "}}], "object": "chat.completion.chunk"}
            delta |= {"id": "x", "created": 0, "model": "router"}
            event = f"data: {json.dumps(delta)}\n\n".encode()
            if self.go_on is not None and number == 0:
                await response.write(event[:20])
                await self.go_on.wait()
                event = event[20:]
            await response.write(event)
            await asyncio.sleep(0.01)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _probes(self, _: web.Request) -> web.Response:
        request = {"model": "router", "messages": [{"role": "user", "content": "held out"}]}
        probes = [{"path": "/v1/chat/completions", "request": request | {"seed": n}} for n in range(5)]
        return web.json_response({"probes": probes})


@asynccontextmanager
async def without_an_answer_to_connections() -> AsyncIterator[Upstream]:
    """A server `new` whose queue of connections is full: whoever wants to connect gets no answer."""
    clients: list[socket.socket] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        try:
            for _ in range(4):
                client = socket.socket()
                clients.append(client)
                client.settimeout(0)
                client.connect_ex(address)
            yield Upstream(name="new", port=int(address[1]))
        finally:
            for client in clients:
                client.close()


@dataclass(kw_only=True)
class GatewayProcess:
    """The gateway as its own process, its routes and observations as files."""

    folder: Path
    port: int = field(default_factory=free_port)
    status_port: int = field(default_factory=free_port)
    epoch: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, **settings: str) -> None:
        variables = {
            "ENDPOINT": "router",
            "NAME": "gateway-0",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "STATUS_PORT": str(self.status_port),
            "ROUTES_FILE": str(self.folder / "routes.json"),
            "OBSERVATIONS_FILE": str(self.folder / "observations.json"),
            "DRAIN_SECONDS": "5",
        } | settings
        environment = {f"FINETUNE_GATEWAY_{name}": value for name, value in variables.items()}
        environment |= {"PYTHONPATH": str(ROOT / "operator"), "PATH": os.environ["PATH"]}
        log = (self.folder / "gateway.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "finetune_gateway"], env=environment, stdout=log, stderr=log, cwd=self.folder
        )

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=HANGS_S)

    def route(self, *upstreams: Upstream, **changes: Any) -> int:
        """Write routes of the next epoch: all traffic to the first upstream unless `rules` says otherwise."""
        self.epoch += 1
        document: dict[str, Any] = {
            "epoch": self.epoch,
            "endpoint": "router",
            "model": "router",
            "task": "Chat",
            "variants": {u.name: {"name": u.name, "url": u.url, "ready": True} for u in upstreams},
            "rules": [{"name": "all", "weights": {upstreams[0].name: 100}}],
        } | changes
        temporary = self.folder / "routes.tmp"
        temporary.write_text(json.dumps(document))
        temporary.replace(self.folder / "routes.json")
        return self.epoch

    def observations(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "observations.json").read_text())
        return loaded

    async def acknowledged(self, epoch: int) -> None:
        await eventually(lambda: self.observations()["acknowledgedEpoch"] >= epoch)

    async def ready(self) -> None:
        async with aiohttp.ClientSession() as session:
            deadline = time.monotonic() + HANGS_S
            while time.monotonic() < deadline:
                assert self.process is not None
                assert self.process.poll() is None, (self.folder / "gateway.log").read_text()
                try:
                    async with session.get(f"http://127.0.0.1:{self.status_port}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError((self.folder / "gateway.log").read_text())


@dataclass(kw_only=True)
class OpenDoor:
    """The operator's side of reports, without its TLS and tokens (tests/api has those)."""

    port: int = field(default_factory=free_port)
    reports: dict[str, Observations] = field(default_factory=dict)
    """The last one of each gateway."""
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    """Gateway -> the peers that it was told of last."""
    inbox: ObservationInbox = field(
        default_factory=lambda: ObservationInbox(enqueue=lambda _: None, clock=lambda: datetime.now(UTC))
    )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{OBSERVATIONS_ROUTE}"

    async def take(self, request: web.Request) -> web.Response:
        report = Observations.model_validate_json(await request.read())
        self.inbox.report(namespace="ns", observations=report)
        self.reports[report.gateway] = report
        self.told[report.gateway] = self.inbox.peers(namespace="ns", of=report)
        return web.json_response(ObservationsReply(peers=self.told[report.gateway]).to_dict())


@pytest.fixture
async def door() -> AsyncIterator[OpenDoor]:
    opened = OpenDoor()
    app = web.Application()
    app.router.add_post(OBSERVATIONS_ROUTE, opened.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", opened.port).start()
    yield opened
    await runner.cleanup()


async def eventually(condition: Any, *, seconds: float = HANGS_S) -> None:
    """Wait until `condition()` is true, on a busy machine too; a missing file counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (FileNotFoundError, IndexError, KeyError):
            pass
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


@pytest.fixture
async def stable() -> AsyncIterator[Upstream]:
    upstream = Upstream(name="old")
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def candidate() -> AsyncIterator[Upstream]:
    upstream = Upstream(name="new")
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    process = GatewayProcess(folder=tmp_path)
    yield process
    process.stop()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
