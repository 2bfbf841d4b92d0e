"""Local mode in motion: the operator's reconciler and work queue over a folder and processes.

Only some objects are worked on (`keys`): `finetune run` is there for one job. What else lies in the folder is left as
it is, processes included.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from finetune_operator.config import OperatorConfig
from finetune_operator.job.names import JOB_LABEL
from finetune_operator.local.cluster import LocalCluster, utc_now
from finetune_operator.local.environment import PodFiles, pod_files
from finetune_operator.local.home import LocalHome
from finetune_operator.local.jobs import JobController
from finetune_operator.local.observations import FileObservations
from finetune_operator.local.pods import PodRunner
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.services import GANG_PORT, LocalServices
from finetune_operator.local.watch import LocalWatchSource, key_of
from finetune_operator.metrics import Metrics
from finetune_operator.ports import Key, Manifest, UnavailableError
from finetune_operator.reconcile import Reconciler
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0


class LocalRuntime:
    """The operator, kubelet and the Job controller in one process. Holds the home's lock while it is open."""

    def __init__(self, *, home: LocalHome, config: OperatorConfig, keys: Collection[Key] | None = None) -> None:
        self.cluster = LocalCluster(home=home)
        self.progress = FileProgress(store=self.cluster.store, home=home, clock=utc_now)
        self._home = home
        self._config = config
        self._keys = keys
        self._open = True
        services = LocalServices(home=home)
        self._pods = PodRunner(
            cluster=self.cluster,
            home=home,
            clock=utc_now,
            meeting_port=lambda pod: services.port(
                namespace=pod["metadata"]["namespace"], name=_gang_of(pod), port=GANG_PORT
            ),
            on_end=self._pod_ended,
        )
        self._jobs = JobController(cluster=self.cluster, clock=utc_now, manage=self._pods.manage)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, home: LocalHome, config: OperatorConfig, keys: Collection[Key] | None = None
    ) -> AsyncIterator[LocalRuntime]:
        """Work in a home until the block ends. Processes that run then go on. Raises HomeLockedError."""
        with home.locked():
            runtime = cls(home=home, config=config, keys=keys)
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
        return pod_files(home=self._home, pod=pod, job_label=JOB_LABEL)

    def kill(self, *, key: Key) -> None:
        """End all processes of a job now, without a checkpoint."""
        for pod in self.pods(key=key):
            self.kill_pod(pod)

    def kill_pod(self, pod: Manifest) -> None:
        """End the processes of one pod now."""
        self._pods.kill(pod)

    async def _work(self) -> None:
        reconciler = Reconciler(
            cluster=self.cluster,
            config=self._config,
            progress=self.progress,
            clock=utc_now,
            metrics=Metrics(registry=CollectorRegistry()),
            door=lambda: None,
            observations=FileObservations(store=self.cluster.store, home=self._home),
        )
        queue: WorkQueue[Key] = WorkQueue(reconciler.reconcile, longest_backoff_seconds=10.0)
        watch = LocalWatchSource(store=self.cluster.store, progress=self.progress, keys=self._keys)
        self.cluster.store.subscribe(self._changed)
        for pod in self.cluster.store.find(kind="Pod"):
            if self._is_ours(pod):
                self._pods.manage(pod)
        for job in self.cluster.store.find(kind="Job"):
            self._changed(job)
        async with asyncio.TaskGroup() as group:
            group.create_task(queue.run(workers=self._config.workers), name="workers")
            group.create_task(watch.run(enqueue=queue.add), name="watch")

    def _changed(self, manifest: Manifest) -> None:
        """A Job or a pod was written: look at it as its controller would, after whoever wrote it is done."""
        if self._open and self._is_ours(manifest) and manifest["kind"] in ("Job", "Pod"):
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
        if manifest["kind"] == "Job":
            if current is not None:
                self._jobs.sync(current)
            return
        if current is not None:
            self._pods.manage(current)
        job = self._jobs.owner_of(manifest)
        if job is not None:
            self._jobs.sync(job)

    def _current(self, manifest: Manifest) -> Manifest | None:
        metadata = manifest["metadata"]
        found = self.cluster.store.read(kind=manifest["kind"], namespace=metadata["namespace"], name=metadata["name"])
        return found if found is not None and found["metadata"]["uid"] == metadata["uid"] else None

    def _pod_ended(self, pod: Manifest) -> None:
        job = self._jobs.owner_of(pod)
        if job is not None:
            self._look_at(job)

    def _is_ours(self, manifest: Manifest) -> bool:
        return self._keys is None or key_of(manifest) in self._keys


def _gang_of(pod: Manifest) -> str:
    owners = pod["metadata"].get("ownerReferences") or ({"name": pod["metadata"]["name"]},)
    return str(owners[0]["name"])
