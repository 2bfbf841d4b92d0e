"""The operator as a process: what runs always, and what runs while it leads.

Always: probes and metrics, and the election. While leading: the door, the watch and the workers. SIGTERM ends the work,
gives the Lease back and exits with 0; a lost Lease ends the work only.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import Surroundings
from finetune_operator.core.ports import Key, UnavailableError
from finetune_operator.core.workqueue import WorkQueue
from finetune_operator.kube.api import Api, load_configuration
from finetune_operator.kube.cluster import KubernetesCluster
from finetune_operator.kube.door import door_application, serving
from finetune_operator.kube.doorway import DoorSettings, Doorway
from finetune_operator.kube.gatekeeper import Gatekeeper, Readers
from finetune_operator.kube.inboxes import ObservationInbox, ProgressInbox
from finetune_operator.kube.leader import Elector, LeaseSettings
from finetune_operator.kube.secured_metrics import own_certificate, secured_application
from finetune_operator.kube.watch import KopfWatchSource
from finetune_operator.metrics import Metrics
from finetune_operator.reconcile import Reconciler

log = logging.getLogger(__name__)

LEASE = "finetune-operator"
MetricsHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_RETRY_SECONDS = 2.0
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """How this process runs. Ports of 0 are chosen by the system."""

    namespace: str
    """The operator's own: of its Lease, its authority and its door."""
    pod_name: str
    pod_address: str = ""
    """The pod's IP, for the door's Service; empty: nothing is published."""
    kubeconfig: str | None = None
    context: str | None = None
    listen: str | None = None
    """Address of probes and door; None: all, of IPv4 and IPv6."""
    probe_port: int = 8080
    door_port: int = 8443
    metrics_port: int = 8444
    """Of metrics with authentication."""
    lease_seconds: int = 15
    """How long a dead leader leads."""


class OperatorProcess:
    """Everything that one replica is made of."""

    def __init__(self, *, config: OperatorConfig, settings: ProcessSettings, configuration: Configuration) -> None:
        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._config = config
        self._settings = settings
        self._metrics = Metrics(registry=registry)
        self._api = Api(configuration=configuration, observer=RequestMetrics(registry=registry))
        self._cluster = KubernetesCluster(api=self._api, namespaces=config.namespaces, reporter=settings.pod_name)
        self._elector = Elector(api=self._api, settings=self._lease_settings(), on_change=self._show_leadership)
        self._doorway = Doorway(
            api=self._api,
            settings=DoorSettings(
                namespace=settings.namespace,
                address=settings.pod_address,
                host=settings.listen,
                port=settings.door_port,
            ),
        )
        self._reached = False

    async def run(self) -> None:
        """Run until cancelled. What ends unexpectedly is raised: the process should end and be started again."""
        settings = self._settings
        metrics = metrics_handler(self._metrics.registry)
        application = probes_application(
            metrics=metrics if self._config.metrics == "Open" else None, not_ready=self._not_ready
        )
        try:
            async with (
                serving(application=application, host=settings.listen, port=settings.probe_port) as port,
                self._secured(metrics),
            ):
                log.info("probes and metrics on port %d", port)
                await self._reach()
                await self._elector.run(lead=self._lead)
        finally:
            await self._api.close()

    @asynccontextmanager
    async def _secured(self, metrics: MetricsHandler) -> AsyncIterator[None]:
        """Metrics with authentication, where they are to have that."""
        if self._config.metrics != "Authenticated":
            yield
            return
        settings, application = self._settings, secured_application(readers=Readers(api=self._api), metrics=metrics)
        tls = own_certificate(name=settings.pod_address or settings.pod_name)
        async with serving(application=application, host=settings.listen, port=settings.metrics_port, tls=tls) as port:
            log.info("metrics with authentication on port %d", port)
            yield

    async def _lead(self) -> None:
        """Do the operator's work until cancelled."""
        inbox = ProgressInbox(enqueue=lambda key: queue.add(key), clock=_now)
        observations = ObservationInbox(enqueue=lambda key: queue.add(key), clock=_now)
        reconciler = Reconciler(
            metrics=self._metrics,
            around=Surroundings(
                cluster=self._cluster,
                config=self._config,
                progress=inbox,
                clock=_now,
                door=lambda: self._doorway.door,
                observations=observations,
            ),
        )
        queue: WorkQueue[Key] = WorkQueue(reconciler.reconcile, observer=self._metrics)
        self._metrics.queue_oldest.set_function(lambda: queue.oldest_seconds)
        gatekeeper = Gatekeeper(api=self._api, cluster=self._cluster, audience=self._config.token_audience)
        watch = KopfWatchSource(
            api=self._api,
            configure=self._configure,
            namespaces=self._config.namespaces,
            excluded_namespaces=self._config.excluded_namespaces,
            instance=self._config.instance,
            relist_seconds=self._config.resync_seconds,
        )
        application = door_application(gatekeeper=gatekeeper, inbox=inbox, observations=observations)
        async with self._doorway.open(application=application) as port, asyncio.TaskGroup() as group:
            log.info("the door is open on port %d", port)
            group.create_task(self._doorway.keep(), name="door upkeep")
            group.create_task(queue.run(workers=self._config.workers), name="workers")
            group.create_task(watch.run(enqueue=queue.add), name="watch")

    async def _reach(self) -> None:
        """Wait until the apiserver has answered once: from then on this replica is ready to take over."""
        while not self._reached:
            try:
                await self._api.request(method="GET", path="/version")
                self._reached = True
            except UnavailableError as error:
                log.warning("the apiserver does not answer yet: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    def _not_ready(self) -> str | None:
        return None if self._reached else "the apiserver has not answered yet"

    def _show_leadership(self, leading: bool) -> None:
        self._metrics.leader.set(leading)
        if not leading:
            self._metrics.forget_all()

    async def _configure(self) -> Configuration:
        return await load_configuration(kubeconfig=self._settings.kubeconfig, context=self._settings.context)

    def _lease_settings(self) -> LeaseSettings:
        seconds = self._settings.lease_seconds
        return LeaseSettings(
            namespace=self._settings.namespace,
            name=LEASE,
            identity=f"{self._settings.pod_name}_{uuid.uuid4().hex[:8]}",
            duration_seconds=seconds,
            renew_deadline_seconds=seconds * 2 / 3,
            retry_seconds=seconds * 2 / 15,
        )


async def run_process(*, config: OperatorConfig, settings: ProcessSettings) -> None:
    """Run a replica until SIGTERM or SIGINT."""
    configuration = await load_configuration(kubeconfig=settings.kubeconfig, context=settings.context)
    process = OperatorProcess(config=config, settings=settings, configuration=configuration)
    task = asyncio.create_task(process.run(), name="operator")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, task, number)
    try:
        await task
    except asyncio.CancelledError:
        log.info("stopped")


def _stop(task: asyncio.Task[None], number: signal.Signals) -> None:
    log.info("%s: stopping", number.name)
    task.cancel()


def _now() -> datetime:
    return datetime.now(UTC)


# -- what watches the operator: /healthz, /readyz and /metrics on one plain HTTP port ----------------------------------


def metrics_handler(registry: CollectorRegistry) -> MetricsHandler:
    """What answers with all metrics."""

    async def metrics(_: web.Request) -> web.StreamResponse:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return metrics


def probes_application(*, metrics: MetricsHandler | None, not_ready: Callable[[], str | None]) -> web.Application:
    """The three routes; without /metrics where there is no handler. `not_ready` says why this replica could not take
    over, None where it could.

    That the event loop turns is all that /healthz asks: a new process would help against nothing else, least of all an
    apiserver that is away.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = not_ready()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    application = web.Application(client_max_size=1024)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    if metrics is not None:
        application.router.add_get("/metrics", metrics)
    return application


class RequestMetrics:
    """Counts and times calls (api.Observer)."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "finetune_kubernetes_requests_total",
            "Calls to the apiserver; status 0: no answer.",
            ["method", "resource", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "finetune_kubernetes_request_duration_seconds",
            "Time of a call to the apiserver.",
            ["method"],
            buckets=_BUCKETS,
            registry=registry,
        )

    def __call__(self, method: str, path: str, status: int, seconds: float) -> None:
        """A call has ended."""
        self._requests.labels(method, resource_of(path), str(status)).inc()
        self._seconds.labels(method).observe(seconds)


def resource_of(path: str) -> str:
    """The plural name in an API path: a closed set, unlike paths."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    return rest[0] if rest else "discovery"
