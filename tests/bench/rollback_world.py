"""The operator's real machine over the cluster in memory, for the rollback benchmark.

Real: reconciler, decisions, statistics, work queue, inbox of observations, gateways as processes that report over HTTP.
Played: the Deployment controller (servers are ready a moment after they were asked for) and the watch (whatever is
written puts the endpoint on the queue). The routes ConfigMap is handed to the gateway as soon as it is written.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from tests.conformance.objects import BASE
from tests.local.gateway.conftest import GatewayProcess
from tests.simulation.memory_cluster import MemoryCluster
from tests.simulation.world import Reports

from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointStatus
from finetune_api.observations import OBSERVATIONS_ROUTE, Observations
from finetune_api.routes import ROUTES_KEY
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import Surroundings
from finetune_operator.core.names import ENDPOINT_LABEL
from finetune_operator.core.ports import Door, Key, Manifest, NotFoundError
from finetune_operator.core.workqueue import WorkQueue
from finetune_operator.endpoint.names import COMPONENT_LABEL, GATEWAY, routes_name, server_name
from finetune_operator.kube.door import MAXIMUM_BODY_BYTES, serving
from finetune_operator.kube.inboxes import ObservationInbox
from finetune_operator.metrics import Metrics
from finetune_operator.reconcile import Reconciler

NAMESPACE = "ml"
LATENCY_LIMIT_SECONDS = 2.0
_CONFIG = OperatorConfig(trainer_image="trainer:1", gateway_image="gateway:1")
_READY_SECONDS = 0.2


@dataclass(kw_only=True)
class Endpoint:
    """One endpoint with its gateway."""

    name: str
    gateway: GatewayProcess
    versions: int = 0
    """How many were created."""
    digests: dict[str, str] = field(default_factory=dict)
    """By version name."""

    @property
    def gateway_pod(self) -> str:
        """The name of its only gateway pod."""
        return f"{self.name}-gateway-0"


class World:
    """One operator and its endpoints."""

    def __init__(self, *, upstream_url: str) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.cluster = _WatchedCluster(world=self)
        self.inbox = ObservationInbox(enqueue=lambda key: self.queue.add(key), clock=_now)
        metrics = Metrics(registry=CollectorRegistry())
        self.reconciler = Reconciler(
            metrics=metrics,
            around=Surroundings(
                cluster=self.cluster,
                config=_CONFIG,
                progress=Reports(listening_since=_now()),
                clock=_now,
                door=lambda: Door(url="https://door.example", ca_bundle="-----BEGIN CERTIFICATE-----\n"),
                observations=self.inbox,
                server_url=lambda namespace, service: f"{upstream_url}/{service}",
            ),
        )
        self.queue: WorkQueue[Key] = WorkQueue(self.reconciler.reconcile, observer=metrics)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The operator at work; gives the URL of its door."""
        application = web.Application(client_max_size=MAXIMUM_BODY_BYTES)
        application.router.add_post(OBSERVATIONS_ROUTE, self._take_in)
        async with serving(application=application, host="127.0.0.1", port=0) as port:
            workers = asyncio.create_task(self.queue.run(workers=_CONFIG.workers))
            try:
                yield f"http://127.0.0.1:{port}{OBSERVATIONS_ROUTE}"
            finally:
                workers.cancel()
                await asyncio.gather(workers, return_exceptions=True)

    async def _take_in(self, request: web.Request) -> web.Response:
        observations = Observations.model_validate_json(await request.read())
        self.inbox.report(namespace=NAMESPACE, observations=observations)
        return web.json_response({})

    # -- what a user does and sees ------------------------------------------------------------------------------------

    async def create_endpoint(self, *, name: str, folder: Path, door: str, rollout: Manifest) -> Endpoint:
        """kubectl apply -f endpoint.yaml; its gateway starts."""
        endpoint = Endpoint(name=name, gateway=GatewayProcess(folder=folder))
        self.endpoints[name] = endpoint
        endpoint.gateway.start(
            ENDPOINT=name, NAME=endpoint.gateway_pod, DOOR_URL=door, OBSERVATIONS_FILE="", DRAIN_SECONDS="1"
        )
        spec = {
            "task": "Chat",
            "serving": {"runtime": "Transformers"},
            "gateway": {"replicas": 1},
            "rollout": rollout,
        }
        await self.cluster.create(manifest=_object("ModelEndpoint", name=name, spec=spec))
        return endpoint

    async def create_version(self, endpoint: Endpoint) -> str:
        """A FineTuneJob has made another version, better than what is stable now. Gives its name."""
        stable = (await self.status(endpoint)).stable
        endpoint.versions += 1
        name = f"{endpoint.name}-{endpoint.versions}"
        endpoint.digests[name] = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
        spec = {
            "endpointRef": {"name": endpoint.name},
            "artifact": {
                "uri": f"pvc://models/runs/{name}/model",
                "digest": endpoint.digests[name],
                "format": "Adapter",
                "sizeBytes": 1024,
            },
            "base": BASE.to_dict(),
            "task": "Chat",
            "method": {},
            "training": {},
            "data": {"digest": "sha256:" + "d" * 64, "rows": {"train": 8, "validation": 1, "test": 1}},
            "baseline": {"name": "before", "digest": stable.digest if stable else "sha256:" + "0" * 64},
            "evaluation": {"verdict": "Pass"},
            "lineage": {"job": {"name": name, "uid": f"job-{name}"}},
        }
        labels = {"finetune.dev/endpoint": endpoint.name}
        await self.cluster.create(manifest=_object("ModelVersion", name=name, spec=spec, labels=labels))
        return name

    async def status(self, endpoint: Endpoint) -> ModelEndpointStatus:
        """kubectl get."""
        found = await self.cluster.get(kind="ModelEndpoint", namespace=NAMESPACE, name=endpoint.name)
        assert found is not None
        return ModelEndpoint.from_object(found).status

    # -- what others do -----------------------------------------------------------------------------------------------

    def written(self, manifest: Manifest) -> None:
        """The watch, the Deployment controller, and the gateways' watch of their routes."""
        labels = manifest["metadata"].get("labels") or {}
        endpoint = self.endpoints.get(labels.get(ENDPOINT_LABEL) or manifest["metadata"]["name"])
        if endpoint is None:
            return
        if manifest["kind"] == "ConfigMap" and manifest["metadata"]["name"] == routes_name(endpoint.name):
            _replace(endpoint.gateway.folder / "routes.json", manifest["data"][ROUTES_KEY])
        if manifest["kind"] == "Deployment":
            loop = asyncio.get_running_loop()
            loop.call_later(_READY_SECONDS, self._become_ready, endpoint, manifest)
        self.queue.add(_key(endpoint))

    def _become_ready(self, endpoint: Endpoint, deployment: Manifest) -> None:
        metadata, replicas = deployment["metadata"], deployment["spec"]["replicas"]
        gateway = metadata["labels"][COMPONENT_LABEL] == GATEWAY
        try:
            live = self.cluster.edit(
                kind="Deployment",
                namespace=NAMESPACE,
                name=metadata["name"],
                change=lambda found: found.update(status=_ready_status(found, replicas=replicas)),
            )
        except NotFoundError:
            return  # it was taken away before it was ready
        if gateway:
            asyncio.get_running_loop().create_task(self._start_pod(endpoint, live))
        self.queue.add(_key(endpoint))

    async def _start_pod(self, endpoint: Endpoint, deployment: Manifest) -> None:
        name, template = endpoint.gateway_pod, deployment["spec"]["template"]
        if await self.cluster.get(kind="Pod", namespace=NAMESPACE, name=name) is not None:
            return
        metadata = {"name": name, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        await self.cluster.create(manifest=pod)
        running = {"phase": "Running", "containerStatuses": [{"name": "gateway", "state": {"running": {}}}]}
        self.cluster.edit(kind="Pod", namespace=NAMESPACE, name=name, change=lambda found: found.update(status=running))
        self.queue.add(_key(endpoint))


class _WatchedCluster(MemoryCluster):
    """Tells the world of every write of the operator and of users."""

    def __init__(self, *, world: World) -> None:
        super().__init__(clock=_now)
        self._world = world

    async def create(self, *, manifest: Manifest) -> Manifest:
        created = await super().create(manifest=manifest)
        self._world.written(created)
        return created

    async def apply(self, *, manifest: Manifest) -> Manifest:
        applied = await super().apply(manifest=manifest)
        self._world.written(applied)
        return applied


def service_of(*, endpoint: Endpoint, uid: str) -> str:
    """The name under which the upstreams know a version."""
    return server_name(endpoint=endpoint.name, version_uid=uid)


def _ready_status(deployment: Manifest, *, replicas: int) -> dict[str, Any]:
    generation = deployment["metadata"].get("generation", 1)
    return {"observedGeneration": generation, "readyReplicas": replicas, "updatedReplicas": replicas}


def _object(kind: str, *, name: str, spec: Manifest, labels: dict[str, str] | None = None) -> Manifest:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels or {}}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def _key(endpoint: Endpoint) -> Key:
    return Key(kind="ModelEndpoint", namespace=NAMESPACE, name=endpoint.name)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _now() -> datetime:
    return datetime.now(UTC)
