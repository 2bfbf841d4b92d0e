"""A server from start to graceful end: it listens, loads, is ready when the model has answered, and drains on SIGTERM.

/readyz says 503 with the state (Loading, WarmingUp, Draining) or 200. What goes wrong while loading ends the process
with the exit code and the termination message of `finetune_trainer.process.errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune_api.results import ExitCode
from finetune_api.run import SERVE_HOST_VARIABLE, SERVE_PORT_VARIABLE, ServeOrder
from finetune_api.tasks import TASKS
from finetune_trainer.process.errors import StageError, bad_configuration
from finetune_trainer.serving.application import Service, build
from finetune_trainer.serving.artifact import Loaded, load
from finetune_trainer.serving.classification import Classification, Classifier
from finetune_trainer.serving.engine import Engine, Runner
from finetune_trainer.serving.generation import TextModel
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.observing import AsgiApp, Observed, log_json_lines
from finetune_trainer.serving.together import runner_of
from finetune_trainer.serving.wire import RequestError
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Wrap = Callable[[AsgiApp, ServeOrder], AsgiApp]
_LINGER_SECONDS = 2.0
"""After SIGTERM requests still arrive, from clients that have not heard yet that this server leaves."""
_KEEP_ALIVE_SECONDS = 75
"""Longer than gateways keep an idle connection: the side that is asked must not be the one that closes."""
_WARM_UP_TOKENS = 8


def unchanged(app: AsgiApp, order: ServeOrder) -> AsgiApp:
    """Wrap nothing around the application."""
    return app


def serve(order: ServeOrder, *, wrap: Wrap = unchanged) -> None:
    """Serve until SIGTERM or SIGINT. `wrap` goes around the application: tests and demonstrations make it misbehave.

    Raises StageError: 66 and 78 where the version cannot be had or is not what was recorded, 70 where it cannot serve.
    """
    runtime = TASKS[order.task].runtimes[0]
    if runtime != order.runtime:
        raise bad_configuration(
            "BadRunFile", f"runtime {order.runtime} does not serve task {order.task}; use {runtime}"
        )
    log_json_lines()
    clean = asyncio.run(_serve(order, wrap=wrap))
    if not clean:
        # A thread is still busy (fetching, or a long step of the model) and would be torn down under its feet.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(int(ExitCode.DONE))


async def _serve(order: ServeOrder, *, wrap: Wrap) -> bool:
    """Whether all threads have ended."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics(order=order)
    engine = Engine(concurrency=order.concurrency, max_waiting=order.max_waiting)
    service = Service(order=order, engine=engine, metrics=metrics)
    app = build(service)
    observed = Observed(app, metrics=metrics)
    listener = _listen(order)
    server = _Server(
        uvicorn.Config(
            wrap(observed, order),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            http=_Connection,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
    )
    log.info("serving %s (version %s) at port %d", order.endpoint, order.version.name, listener.getsockname()[1])
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(_become_ready(service, app))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([serving, loading, stopping], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        service.state = "Draining"
        metrics.ready.set(0)
        await _drain(observed, grace_seconds=order.grace_seconds)
    finally:
        loaded = loading.done()
        for task in (loading, stopping):
            task.cancel()
        server.should_exit = True
        await asyncio.gather(serving, loading, stopping, return_exceptions=True)
    return engine.stop(timeout=2.0) and loaded


class _Server(uvicorn.Server):
    """uvicorn, without its signal handlers: it would stop listening at once, and die of the signal in the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(H11Protocol):
    """A connection on which what is no HTTP is refused in the form of all other errors."""

    def send_400_response(self, msg: str) -> None:
        """Refuse, and close."""
        body = json.dumps(RequestError(msg).body()).encode()
        head = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        for event in (
            h11.Response(status_code=400, headers=list(head.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


async def _become_ready(service: Service, app: AsgiApp) -> None:
    """Load the model and have it answer."""
    order = service.order
    service.model, runner, loaded = await _in_thread(lambda: _load(order))
    service.probes = loaded.probes
    service.metrics.load_seconds.set(loaded.seconds)
    service.engine.start(runner)
    service.state = "WarmingUp"
    began = time.monotonic()
    await _warm_up(service, app)
    if service.state == "WarmingUp":
        service.state = "Ready"
        service.metrics.ready.set(1)
        log.info("ready: the model has answered in %.2f s", time.monotonic() - began)


def _load(order: ServeOrder) -> tuple[TextModel | Classifier, Runner, Loaded]:
    loaded = load(order, storage=Storage(locations=order.locations))
    made: dict[str, Any] = {"model": loaded.model, "tokenizer": loaded.tokenizer, "limit": order.context_tokens}
    task = task_of(order.task)
    if not task.generates:
        classifier = Classifier.of(**made, labels=order.labels or ())
        return classifier, Classification(classifier), loaded
    text_model = TextModel.of(**made, two_parts=task.two_parts)
    return text_model, runner_of(text_model), loaded


async def _warm_up(service: Service, app: AsgiApp) -> None:
    """One request through all that a client's goes through. Raises StageError (70) unless it is answered."""
    task = task_of(service.order.task)
    path, request = TASKS[task.name].paths[0], task.greeting
    if service.probes:
        path, request = service.probes[0].path, service.probes[0].request
    short = {"max_tokens": _WARM_UP_TOKENS} if task.generates else {}
    status, body = await _ask(app, path=path, document={**request, **short})
    if status != 200:
        raise StageError(
            reason="WarmUpFailed",
            message=f"the loaded model did not answer its first request: status {status}, {body[:500].decode()}",
            exit_code=ExitCode.INTERNAL_ERROR,
        )


async def _ask(app: AsgiApp, *, path: str, document: dict[str, Any]) -> tuple[int, bytes]:
    """POST to the application, without a connection."""
    answer: list[Any] = []
    sent = [{"type": "http.request", "body": json.dumps(document).encode(), "more_body": False}]

    async def receive() -> Any:
        return sent.pop() if sent else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        answer.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return int(answer[0]["status"]), b"".join(message.get("body", b"") for message in answer)


async def _drain(observed: Observed, *, grace_seconds: float) -> None:
    """Let clients finish."""
    observed.draining = True
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace_seconds
    log.info("stopping: %d requests under way, at most %g s for them", observed.in_flight, grace_seconds)
    await asyncio.sleep(min(_LINGER_SECONDS, grace_seconds))
    while observed.in_flight and loop.time() < deadline:  # noqa: ASYNC110 - once in a process's life
        await asyncio.sleep(0.02)
    if observed.in_flight:
        log.warning("%d requests cut off after %g s", observed.in_flight, grace_seconds)


def _listen(order: ServeOrder) -> socket.socket:
    host = os.environ.get(SERVE_HOST_VARIABLE, "")
    port = int(os.environ.get(SERVE_PORT_VARIABLE) or order.port)
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        raise StageError(
            reason="CannotListen",
            message=f"port {port} cannot be listened at: {error}",
            exit_code=ExitCode.INTERNAL_ERROR,
        ) from error


def _in_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Run on a daemon thread: unlike an executor's, it does not hold up the end of the process."""
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return asyncio.wrap_future(done)
