"""Local mode in motion: the operator's reconciler and work queue over a folder and processes.

Only some objects are worked on: `finetune run` is there for one job, `finetune up` for its endpoints and for all jobs.
What else lies in the folder is left as it is, processes included.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from finetune_operator.config import OperatorConfig
from finetune_operator.endpoint.names import COMPARISON, COMPONENT_LABEL, GATEWAY
from finetune_operator.job.names import JOB_LABEL
from finetune_operator.local.cluster import LocalCluster, utc_now
from finetune_operator.local.deployments import DeploymentController
from finetune_operator.local.environment import PodFiles, pod_files
from finetune_operator.local.home import LocalHome
from finetune_operator.local.jobs import JobController
from finetune_operator.local.observations import FileObservations
from finetune_operator.local.pods import PodRunner
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.routes_files import write_routes
from finetune_operator.local.services import LocalServices
from finetune_operator.local.watch import LocalWatchSource, key_of
from finetune_operator.metrics import Metrics
from finetune_operator.ports import Key, Kind, Manifest, UnavailableError
from finetune_operator.reconcile import Reconciler
from finetune_operator.workqueue import WorkQueue

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
        self._deployments = DeploymentController(cluster=self.cluster, clock=utc_now, manage=self._pods.manage)
        observations = FileObservations(store=self.cluster.store, home=home)
        self._watch = LocalWatchSource(
            store=self.cluster.store,
            home=home,
            progress=self.progress,
            observations=observations,
            works_on=self._works_on,
        )
        reconciler = Reconciler(
            cluster=self.cluster,
            config=config,
            progress=self.progress,
            clock=utc_now,
            metrics=Metrics(registry=CollectorRegistry()),
            door=lambda: None,
            observations=observations,
            server_url=self.services.url,
        )
        self._queue: WorkQueue[Key] = WorkQueue(reconciler.reconcile, longest_backoff_seconds=10.0)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, home: LocalHome, config: OperatorConfig, keys: Collection[Key] | None = None, all_jobs: bool = False
    ) -> AsyncIterator[LocalRuntime]:
        """Work in a home until the block ends, on these objects (None: on all) and, if so wished, on every job.

        Processes that run then go on. Raises HomeLockedError.
        """
        with home.locked(takes_jobs=all_jobs):
            runtime = cls(home=home, config=config, keys=keys, all_jobs=all_jobs)
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
            if key is not None and self.has_living_pods(key=key):
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

    def replace_pods(self, *, key: Key, component: str) -> None:
        """Have an endpoint's gateway, or its servers, started anew."""
        for pod in self._ours("Pod"):
            if key_of(pod) == key and _component(pod) == component:
                self.cluster.delete_pod(pod)

    def is_listening(self, *, key: Key) -> bool:
        """Whether an endpoint's gateway has processes, from this or from an earlier start."""
        pods = [pod for pod in self._ours("Pod") if key_of(pod) == key and _component(pod) == GATEWAY]
        return any(self._pods.is_running(pod) for pod in pods)

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
            write_routes(config_map, home=self._home)
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
            write_routes(manifest, home=self._home)
        elif manifest["kind"] in _RUNNING:
            asyncio.get_running_loop().call_soon(self._look_at, manifest)

    def _look_at(self, manifest: Manifest) -> None:
        try:
            self._manage(manifest)
        except UnavailableError as error:
            log.warning("%s", error)
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._look_at, manifest)

    def _manage(self, manifest: Manifest) -> None:
        if not self._open:
            return
        current = self._current(manifest)
        if manifest["kind"] == "Pod":
            if current is not None:
                self._pods.manage(current)
            self._look_at_owner(manifest)
        elif current is not None and manifest["kind"] == "Job":
            self._jobs.sync(current)
        elif current is not None:
            self._deployments.sync(current)

    def _look_at_owner(self, pod: Manifest) -> None:
        job = self._jobs.owner_of(pod)
        if job is not None:
            self._jobs.sync(job)
        deployment = self._deployments.owner_of(pod)
        if deployment is not None:
            self._deployments.sync(deployment)

    def _current(self, manifest: Manifest) -> Manifest | None:
        metadata = manifest["metadata"]
        found = self.cluster.store.read(kind=manifest["kind"], namespace=metadata["namespace"], name=metadata["name"])
        return found if found is not None and found["metadata"]["uid"] == metadata["uid"] else None

    def _pod_ended(self, pod: Manifest) -> None:
        job = self._jobs.owner_of(pod)
        if job is not None:
            self._look_at(job)

    def _is_ours(self, manifest: Manifest) -> bool:
        if self._keys is None:
            return True
        key = key_of(manifest)
        return key is not None and self._works_on(key)

    def _works_on(self, key: Key) -> bool:
        return self._keys is None or key in self._keys or (self._all_jobs and key.kind == "FineTuneJob")


def _component(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(COMPONENT_LABEL, ""))
