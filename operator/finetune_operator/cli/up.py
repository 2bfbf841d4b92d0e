"""`finetune up`: ModelEndpoints on this machine, kept as they should be until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import start_http_server

from finetune_api.finetunejob import TERMINAL_PHASES
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.manifests import manifests_from
from finetune_operator.cli.run import config_of, refuse
from finetune_operator.cli.up_view import EndpointView, UpShows
from finetune_operator.cli.validate import complete
from finetune_operator.cli.view import View, stopped_by
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.names import ENDPOINT_LABEL
from finetune_operator.core.ports import InvalidError, Key, Manifest
from finetune_operator.core.status_writing import key_of
from finetune_operator.endpoint.names import COMPONENT_LABEL, GATEWAY, VERSION_LABEL
from finetune_operator.local.cluster import utc_now
from finetune_operator.local.home import HomeLockedError, LocalHome
from finetune_operator.local.limits import endpoint_notices, endpoint_obstacles, for_one_machine
from finetune_operator.local.listening import assigned_ports
from finetune_operator.local.pod_status import is_ready
from finetune_operator.local.runtime import LocalRuntime
from finetune_operator.local.services import HOST, HTTP_PORT, STATUS_PORT, is_free

_LOOK_SECONDS = 0.2
_FIRST_PORT = 8080
_LAST_PORT = 8180
_HINT = "Ctrl-C answers what is under way and ends all; the same command brings it back."


async def up(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    home = LocalHome.at(options.home)
    config = config_of(home)
    manifests = [each for source in options.filename for each in _manifests(source, options=options)]
    keys = [key_of(each) for each in manifests]
    if len(set(keys)) < len(keys):
        raise CommandError("an endpoint is there twice; give each another metadata.name")
    if options.port is not None and len(keys) > 1:
        raise CommandError(f"--port is for one endpoint, found {len(keys)}; leave it out, or name one file")
    for each in manifests:
        endpoint = ModelEndpoint.from_object({**each, "status": {}})
        found = list(endpoint_obstacles(endpoint, home=home))
        refuse(found, what=f"{endpoint.metadata.name} cannot be served", notices=endpoint_notices(endpoint))
    try:
        return await _serve(manifests, home=home, config=config, options=options)
    except HomeLockedError as error:
        raise CommandError(str(error)) from error


def _manifests(source: str, *, options: argparse.Namespace) -> list[Manifest]:
    """The endpoints of a file, complete and valid. Raises CommandError."""
    found = []
    for manifest in manifests_from(source):
        if manifest.get("kind") != "ModelEndpoint":
            raise CommandError(
                f"{source}: up takes ModelEndpoints, found {manifest.get('kind')}; jobs go to `finetune run`, also"
                " while `up` works"
            )
        found.append(complete(manifest, source=source, namespace=options.namespace))
    return found


async def _serve(
    manifests: list[Manifest], *, home: LocalHome, config: OperatorConfig, options: argparse.Namespace
) -> int:
    keys = [key_of(each) for each in manifests]
    async with LocalRuntime.open(home=home, config=config, keys=set(keys), all_jobs=True) as runtime:
        try:
            for manifest in manifests:
                runtime.cluster.submit(manifest=for_one_machine(manifest))
        except InvalidError as error:
            raise CommandError(str(error)) from error
        for key in keys:
            _choose_port(runtime, key=key, wanted=options.port)
        running = _Up(runtime=runtime, keys=keys, options=options)
        with _scraped(runtime) as url, stopped_by(running.interrupt, view=running.view):
            running.view.say(f"metrics of the operator: {url}")
            return await running.until_stopped()


@contextmanager
def _scraped(runtime: LocalRuntime) -> Iterator[str]:
    """The operator's own metrics, where the block finds them."""
    server, thread = start_http_server(0, addr=HOST, registry=runtime.metrics.registry)
    try:
        yield f"http://{HOST}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _choose_port(runtime: LocalRuntime, *, key: Key, wanted: int | None) -> None:
    """Where clients find the endpoint: the port of before, where it is still free; 8080 or the next one at first."""
    service = {"namespace": key.namespace, "name": key.name, "port": HTTP_PORT}
    before = runtime.services.known_port(**service)
    if before is not None and wanted in (None, before) and is_free(before):
        return
    if wanted is not None and not is_free(wanted):
        raise CommandError(f"port {wanted} of {HOST} is in use; choose another one with --port")
    port = wanted or next((each for each in range(_FIRST_PORT, _LAST_PORT) if is_free(each)), None)
    if port is None:
        raise CommandError(f"no port from {_FIRST_PORT} to {_LAST_PORT - 1} is free; choose one with --port")
    runtime.services.reserve(**service, number=port)


class _Up:
    """Endpoints that are served: what is shown of them, and what Ctrl-C does."""

    def __init__(self, *, runtime: LocalRuntime, keys: list[Key], options: argparse.Namespace) -> None:
        self.view = View.chosen(UpShows(), options=options, hint=_HINT)
        self._runtime = runtime
        self._keys = keys
        self._stopping: asyncio.Task[None] | None = None

    async def until_stopped(self) -> int:
        """Show what goes on until all has ended."""
        for each in self._views():
            self.view.say(f"{each.name} will be at {each.url} (model `{each.name}`)")
        try:
            while self._stopping is None or not self._stopping.done():
                self.view.show(self._views())
                await asyncio.sleep(_LOOK_SECONDS)
            self._stopping.result()
        finally:
            self.view.close()
        self.view.say("All is ended; nothing was lost. The same command brings it back.")
        return ExitStatus.INTERRUPTED

    def interrupt(self) -> None:
        """The first time: drain and end. The second time: end now."""
        if self._stopping is not None:
            self.view.say("stopping now")
            self._runtime.kill_all()
            return
        self.view.say("answering what is under way, then stopping; Ctrl-C again stops at once")
        self._stopping = asyncio.create_task(self._runtime.stop())

    def _views(self) -> list[EndpointView]:
        return [view for key in self._keys if (view := self._view_of(key)) is not None]

    def _view_of(self, key: Key) -> EndpointView | None:
        store = self._runtime.cluster.store
        found = store.read(kind="ModelEndpoint", namespace=key.namespace, name=key.name)
        if found is None:
            return None
        port = self._runtime.services.port(namespace=key.namespace, name=key.name, port=HTTP_PORT)
        labels = {ENDPOINT_LABEL: key.name}
        return EndpointView(
            endpoint=ModelEndpoint.from_object(found),
            url=f"http://{HOST}:{port}/v1",
            now=utc_now(),
            jobs=tuple(_jobs_of(key, manifests=store.find(kind="FineTuneJob", namespace=key.namespace))),
            metrics=dict(_metrics_of(store.find(kind="Pod", namespace=key.namespace, labels=labels))),
        )


def _metrics_of(pods: list[Manifest]) -> Iterator[tuple[str, str]]:
    """Whose metrics are where, of the pods that are ready."""
    for pod in pods:
        labels, ports = pod["metadata"]["labels"], assigned_ports(pod)
        port = ports.get(STATUS_PORT) or ports.get(HTTP_PORT)
        if port is not None and is_ready(pod):
            server = f"the server of {labels.get(VERSION_LABEL)}"
            yield "the gateway" if labels[COMPONENT_LABEL] == GATEWAY else server, f"http://{HOST}:{port}/metrics"


def _jobs_of(key: Key, *, manifests: list[Manifest]) -> Iterator[tuple[str, str]]:
    """Name and phase of the jobs for an endpoint that have not ended."""
    for manifest in manifests:
        phase = (manifest.get("status") or {}).get("phase") or "Pending"
        if (manifest["spec"].get("endpointRef") or {}).get("name") == key.name and phase not in TERMINAL_PHASES:
            yield manifest["metadata"]["name"], phase
