"""Local mode in motion: the operator's reconciler and work queue over a folder and processes.

Only some objects are worked on: `finetune run` is there for one job, `finetune up` for its endpoints and for all jobs.
What else lies in the folder is left as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from finetune_api.routes import ROUTES_KEY
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import Surroundings
from finetune_operator.core.names import ENDPOINT_LABEL, JOB_LABEL
from finetune_operator.core.ports import Key, Kind, Manifest, UnavailableError
from finetune_operator.core.status_writing import key_of
from finetune_operator.core.workqueue import WorkQueue
from finetune_operator.endpoint.names import COMPARISON, COMPONENT_LABEL, GATEWAY, routes_name
from finetune_operator.kinds import concerned
from finetune_operator.local.cluster import LocalCluster, utc_now
from finetune_operator.local.deployments import DeploymentController
from finetune_operator.local.environment import PodFiles, pod_files
from finetune_operator.local.files import write_json
from finetune_operator.local.home import LocalHome
from finetune_operator.local.jobs import JobController
from finetune_operator.local.observations import FileObservations
from finetune_operator.local.pods import PodRunner
from finetune_operator.local.processes import end_left_behind
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.services import LocalServices
from finetune_operator.local.watch import LocalWatchSource
from finetune_operator.metrics import Metrics
from finetune_operator.reconcile import Reconciler

log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 5.0
_RUNNING: tuple[Kind, ...] = ("Pod", "Job", "Deployment")
"""What controllers and kubelet look at; pods first, so that those of before are found before new ones are made."""


class LocalRuntime:
    """The operator, kubelet and the controllers in one process. Holds the home's lock while it is open."""

    def __init__(
        self, *, home: LocalHome, config: OperatorConfig, keys: Collection[Key] | None, all_jobs: bool
    ) -> None:
        self.cluster = LocalCluster(home=home)
        self.progress = FileProgress(store=self.cluster.store, home=home, clock=utc_now)
        self.services = LocalServices(home=home)
        self._home = home
        self._config = config
        self._keys = keys
        self._all_jobs = all_jobs
        self._open = True
        self._pods = PodRunner(cluster=self.cluster, home=home, clock=utc_now, on_end=self._pod_ended)
        self._jobs = JobController(cluster=self.cluster, clock=utc_now, manage=self._pods.manage)
        self._deployments = DeploymentController(cluster=self.cluster, manage=self._pods.manage)
        observations = FileObservations(store=self.cluster.store, home=home)
        self._watch = LocalWatchSource(
            store=self.cluster.store,
            home=home,
            progress=self.progress,
            observations=observations,
            works_on=self._works_on,
        )
        self.metrics = Metrics(registry=CollectorRegistry())
        self.metrics.leader.set(1)  # nobody else works here
        reconciler = Reconciler(
            metrics=self.metrics,
            around=Surroundings(
                cluster=self.cluster,
                config=config,
                progress=self.progress,
                clock=utc_now,
                door=lambda: None,
                observations=observations,
                server_url=self.services.url,
            ),
        )
        self._queue: WorkQueue[Key] = WorkQueue(
            reconciler.reconcile, observer=self.metrics, longest_backoff_seconds=10.0
        )
        self.metrics.queue_oldest.set_function(lambda: self._queue.oldest_seconds)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, home: LocalHome, config: OperatorConfig, keys: Collection[Key] | None = None, all_jobs: bool = False
    ) -> AsyncIterator[LocalRuntime]:
        """Work in a home until the block ends, on these objects (None: on all) and, if so wished, on every job.

        No process of theirs outlives it. Raises HomeLockedError, UnavailableError.
        """
        with home.locked(takes_jobs=all_jobs):
            runtime = cls(home=home, config=config, keys=keys, all_jobs=all_jobs)
            for pod in runtime._ours("Pod"):  # those of a finetune that was killed save, and end
                await end_left_behind(runtime.files(pod).folder)
            runtime.cluster.collect_garbage()
            work = asyncio.create_task(runtime._work(), name="local operator")
            try:
                yield runtime
            finally:
                runtime._open = False
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
                await runtime._pods.close()

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def pods(self, *, key: Key) -> list[Manifest]:
        """The pods of a job, oldest first."""
        pods = self.cluster.store.find(kind="Pod", namespace=key.namespace, labels={JOB_LABEL: key.name})
        return sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def has_living_pods(self, *, key: Key) -> bool:
        """Whether pods of a job run, or have ended and were not seen to by all."""
        return any(
            pod["metadata"].get("deletionTimestamp") or pod["status"]["phase"] not in ("Succeeded", "Failed")
            for pod in self.pods(key=key)
        )

    def files(self, pod: Manifest) -> PodFiles:
        """The files of a pod."""
        return pod_files(home=self._home, pod=pod)

    def kill(self, *, key: Key) -> None:
        """End all processes of a job now, without a checkpoint."""
        for pod in self.pods(key=key):
            self.kill_pod(pod)

    def kill_pod(self, pod: Manifest) -> None:
        """End the processes of one pod now."""
        self._pods.kill(pod)

    # -- endpoints -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End all processes: jobs save and are suspended, gateways answer what they have, then servers end."""
        for job in self._ours("FineTuneJob"):
            key = key_of(job)
            if self.has_living_pods(key=key):
                self.cluster.submit(manifest={**job, "spec": {**job["spec"], "suspend": True}})
        while self._close_comparisons() or self._close_deployments() or any(self._living_pods()):  # noqa: ASYNC110 - processes end when they end
            await asyncio.sleep(_POLL_SECONDS)
        with contextlib.suppress(TimeoutError):  # the objects may say what became of all this; nothing depends on it
            async with asyncio.timeout(_SETTLE_SECONDS):
                while not self._queue.idle:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)

    def kill_all(self) -> None:
        """End all processes now, for good."""
        for deployment in self._ours("Deployment"):
            self._deployments.close(deployment)
        for pod in list(self._living_pods()):
            self.kill_pod(pod)

    def _close_comparisons(self) -> bool:
        """Have no more pods of endpoints' Jobs; the next start makes them anew. Whether there are any still."""
        jobs = [job for job in self._ours("Job") if _component(job) == COMPARISON]
        for job in jobs:
            self._jobs.close(job)
        return any(_component(pod) == COMPARISON for pod in self._living_pods())

    def _close_deployments(self) -> bool:
        """Have no more pods: servers of an endpoint after its gateway. Whether there are any still."""
        deployments = list(self._ours("Deployment"))
        gateways = [each for each in deployments if _component(each) == GATEWAY]
        for group in (gateways, deployments):
            for each in group:
                self._deployments.close(each)
            if any(self._deployments.pods(each) for each in group):
                return True
        return False

    def _living_pods(self) -> Iterator[Manifest]:
        return (pod for pod in self._ours("Pod") if self._pods.is_running(pod))

    def _ours(self, kind: Kind) -> Iterator[Manifest]:
        return (each for each in self.cluster.store.find(kind=kind) if self._is_ours(each))

    # -- work ----------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        self.cluster.store.subscribe(self._changed)
        for config_map in self._ours("ConfigMap"):
            self._write_routes(config_map)
        for kind in _RUNNING:
            for each in self._ours(kind):
                self._look_at(each)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run(workers=self._config.workers), name="workers")
            group.create_task(self._watch.run(enqueue=self._queue.add), name="watch")

    def _changed(self, manifest: Manifest) -> None:
        """An object was written: look at it as its controller would, after whoever wrote it is done."""
        if not self._open or not self._is_ours(manifest):
            return
        if manifest["kind"] == "ConfigMap":
            self._write_routes(manifest)
        elif manifest["kind"] in _RUNNING:
            asyncio.get_running_loop().call_soon(self._look_at, manifest)

    def _write_routes(self, config_map: Manifest) -> None:
        """What the volume of a ConfigMap is to a pod: an endpoint's routes where its gateway follows them."""
        metadata = config_map["metadata"]
        endpoint = (metadata.get("labels") or {}).get(ENDPOINT_LABEL)
        text = (config_map.get("data") or {}).get(ROUTES_KEY)
        if endpoint is not None and metadata["name"] == routes_name(endpoint) and text is not None:
            write_json(self._home.routes(namespace=metadata["namespace"], endpoint=endpoint), json.loads(text))

    def _look_at(self, manifest: Manifest) -> None:
        try:
            self._manage(manifest)
        except UnavailableError as error:
            log.warning("%s", error)
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._look_at, manifest)

    def _manage(self, manifest: Manifest) -> None:
        if not self._open:
            return
        current = self.cluster.current(manifest)
        if manifest["kind"] == "Pod":
            if current is not None:
                self._pods.manage(current)
            self._look_at_owner(manifest)
        elif current is not None and manifest["kind"] == "Job":
            self._jobs.sync(current)
        elif current is not None:
            self._deployments.sync(current)

    def _look_at_owner(self, pod: Manifest) -> None:
        owner = self.cluster.owner_of(pod)
        if owner is not None:
            (self._jobs.sync if owner["kind"] == "Job" else self._deployments.sync)(owner)

    def _pod_ended(self, pod: Manifest) -> None:
        owner = self.cluster.owner_of(pod)
        if owner is not None and owner["kind"] == "Job":
            self._look_at(owner)

    def _is_ours(self, manifest: Manifest) -> bool:
        if self._keys is None:
            return True
        key = concerned(manifest)
        return key is not None and self._works_on(key)

    def _works_on(self, key: Key) -> bool:
        return self._keys is None or key in self._keys or (self._all_jobs and key.kind == "FineTuneJob")


def _component(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(COMPONENT_LABEL, ""))
