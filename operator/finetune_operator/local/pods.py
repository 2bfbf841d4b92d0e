"""What kubelet does: run the containers of pods, and write what becomes of them into the pods' status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from finetune_operator.attempts.pods import INDEX_ANNOTATION
from finetune_operator.core.ports import Clock, Manifest, UnavailableError
from finetune_operator.core.times import parse_time
from finetune_operator.local import gpus, listening, pod_status, probes
from finetune_operator.local.cluster import LocalCluster, rfc3339
from finetune_operator.local.environment import (
    ContainerBuilder,
    ContainerConfigError,
    PodFiles,
    clear_scratch,
    pod_files,
)
from finetune_operator.local.home import LocalHome
from finetune_operator.local.processes import Container, Ended, end_left_behind
from finetune_operator.local.services import GANG_PORT, LocalServices

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 4096
_DEFAULT_GRACE_SECONDS = 30
_CONFIG_RETRY_SECONDS = 2.0
_DISK_RETRY_SECONDS = 1.0
_POLL_SECONDS = 0.1
_LAST_LOOK_SECONDS = 1.0
"""How long a deleted pod still shows how it ended: its last words may name a checkpoint."""
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_CALM_SECONDS = 60.0
"""A container that ran for this long is started again without much ado."""


class PodRunner:
    """Runs pods. `on_end` is told when a container has ended, after the pod's status says so."""

    def __init__(
        self, *, cluster: LocalCluster, home: LocalHome, clock: Clock, on_end: Callable[[Manifest], None]
    ) -> None:
        self._cluster = cluster
        self._home = home
        self._clock = clock
        self._services = LocalServices(home=home)
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._containers: dict[str, Container] = {}
        """By the pod's UID, from its start until its end was looked at."""
        cluster.runs_pods(is_running=self.is_running)

    def is_running(self, pod: Manifest) -> bool:
        """Whether there are processes, or will be, or an end of theirs that the pod's status does not tell yet."""
        return pod["metadata"]["uid"] in self._tasks

    def manage(self, pod: Manifest) -> None:
        """Run a pod, or end its processes: whatever its object asks for."""
        uid = pod["metadata"]["uid"]
        deleted = pod["metadata"].get("deletionTimestamp") is not None
        if deleted and uid in self._containers:
            self._containers[uid].stop()
        if uid not in self._tasks and (deleted or not pod_status.is_over(pod)):
            task = asyncio.create_task(self._run(pod), name=f"pod {pod['metadata']['name']}")
            self._tasks[uid] = task
            task.add_done_callback(lambda done: self._forget(uid, done))

    def kill(self, pod: Manifest) -> None:
        """End a pod's processes now, without grace."""
        if (container := self._containers.get(pod["metadata"]["uid"])) is not None:
            container.kill()

    async def close(self) -> None:
        """End all processes, with their grace period. What became of them is seen by the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for container in self._containers.values():
            container.stop()
        await asyncio.gather(*(container.wait() for container in self._containers.values()))

    def _forget(self, uid: str, done: asyncio.Task[None]) -> None:
        self._tasks.pop(uid, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("%s: %s", done.get_name(), error, exc_info=error)

    # -- the life of a pod ---------------------------------------------------------------------------------------------

    async def _run(self, pod: Manifest) -> None:
        """The life of a pod, from wherever it is now to its end."""
        files = self._files(pod)
        ended = await end_left_behind(files.folder)
        while True:
            if ended is None:
                container = await self._start(pod, files)
                if container is None:
                    self._finish(pod, None)
                    return
                ended = await self._watched(pod, container)
                del self._containers[pod["metadata"]["uid"]]
            if pod["spec"].get("restartPolicy") != "Always" or not self._stays(pod):
                break
            await self._rest(pod, ended=ended, message=_last_words(files))
            ended = None
        clear_scratch(files=files, pod=pod)
        now = rfc3339(self._clock())
        status = pod_status.terminated(self._latest(pod), ended=ended, message=_last_words(files), now=now)
        await self._keep_trying(pod, status)
        await asyncio.sleep(0 if self._stays(pod) else _LAST_LOOK_SECONDS)
        self._finish(pod, status)

    async def _watched(self, pod: Manifest, container: Container) -> Ended:
        """How the container ends; meanwhile the pod's status says whether it is ready."""
        since = rfc3339(self._clock())

        def show(ready: bool) -> None:
            current = self._latest(pod)
            self._set_status(pod, pod_status.running(current, since=since, ready=ready, now=rfc3339(self._clock())))

        def give_up(why: str) -> None:
            log.warning("%s: %s; it is started again", pod["metadata"]["name"], why)
            container.stop()

        specified = pod["spec"]["containers"][0]
        probed = any(name.endswith("Probe") for name in specified)
        show(not probed)
        if not self._stays(pod):
            container.stop()  # deleted while it was being started
        builder = ContainerBuilder(cluster=self._cluster, home=self._home, pod=pod, files=self._files(pod))
        beside = [asyncio.create_task(builder.follow_secrets())]
        if probed:
            ports = listening.assigned_ports(self._latest(pod))
            watching = probes.watch(container=specified, ports=ports, on_ready=show, on_dead=give_up)
            beside.append(asyncio.create_task(watching))
        try:
            return await container.wait()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _rest(self, pod: Manifest, *, ended: Ended, message: str) -> None:
        """Count a container's end, and wait before it is started again, the longer the oftener it has ended."""
        now = self._clock()
        current = self._latest(pod)
        if not pod_status.waits_to_restart(current):
            status = pod_status.crashed(current, ended=ended, message=message, now=rfc3339(now))
            await self._keep_trying(pod, status)
        due = asyncio.get_running_loop().time() + _backoff(restarts=pod_status.restarts(current), ended=ended, now=now)
        while asyncio.get_running_loop().time() < due and self._stays(pod):  # noqa: ASYNC110 - a file may say so
            await asyncio.sleep(_POLL_SECONDS)

    async def _start(self, pod: Manifest, files: PodFiles) -> Container | None:
        """Start the container as soon as it can be made and there is room. None: the pod was deleted meanwhile."""
        while True:
            current = self._current(pod)
            if current is None or current["metadata"].get("deletionTimestamp") is not None:
                return None
            try:
                return await self._try_to_start(current, files)
            except _NoRoomError as error:
                self._set_status(pod, pod_status.unschedulable(str(error), now=rfc3339(self._clock())))
            except ContainerConfigError as error:
                self._set_status(pod, pod_status.cannot_start(current, str(error)))
            except OSError as error:
                message = f"{error.strerror or error}: {error.filename or files.folder}"
                self._set_status(pod, pod_status.cannot_start(current, message))
            await asyncio.sleep(_CONFIG_RETRY_SECONDS)

    async def _try_to_start(self, pod: Manifest, files: PodFiles) -> Container:
        pod = self._with_ports(self._with_gpus(pod))
        builder = ContainerBuilder(cluster=self._cluster, home=self._home, pod=pod, files=files)
        for folder in (files.folder, files.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        mounts = await builder.volumes()
        environment = await builder.environment(
            mounts=mounts,
            index=int((pod["metadata"].get("annotations") or {}).get(INDEX_ANNOTATION, 0)),
            meeting_port=self._meeting_port(pod),
            gpus=gpus.assigned(pod),
            more=listening.variables(pod, home=self._home),
        )
        files.termination_log.unlink(missing_ok=True)
        container = self._containers[pod["metadata"]["uid"]] = Container(
            folder=files.folder,
            log=files.log,
            command=builder.command(mounts=mounts),
            environment=environment,
            grace_seconds=pod["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_SECONDS),
        )
        return container

    def _meeting_port(self, pod: Manifest) -> int:
        """Where the pods of a Job meet; 0 for pods of anything else."""
        metadata = pod["metadata"]
        owner = (metadata.get("ownerReferences") or ({"kind": "Job", "name": metadata["name"]},))[0]
        if owner["kind"] != "Job":
            return 0
        return self._services.port(namespace=metadata["namespace"], name=owner["name"], port=GANG_PORT)

    def _with_ports(self, pod: Manifest) -> Manifest:
        """The pod with the ports that it listens at, recorded before they are used."""
        if not pod["spec"]["containers"][0].get("ports"):
            return pod
        return self._cluster.store.write(listening.with_ports(pod, services=self._services))

    def _with_gpus(self, pod: Manifest) -> Manifest:
        """The pod with GPUs of its own, recorded before they are used."""
        wanted = gpus.gpus_wanted(pod)
        if wanted == 0 or gpus.assigned(pod):
            return pod
        machine = gpus.gpus_of_machine()
        others = [each for each in self._cluster.store.find(kind="Pod") if not pod_status.is_over(each)]
        free = gpus.free_gpus(running=others, machine=machine)
        if len(free) < wanted:
            raise _NoRoomError(
                f"{wanted} GPUs are wanted, {len(free)} of this machine's {len(machine)} are free;"
                " run the job on a cluster, or set compute.gpusPerNode to what is here"
            )
        annotations = {
            **(pod["metadata"].get("annotations") or {}),
            gpus.ASSIGNED_ANNOTATION: ",".join(free[:wanted]),
        }
        return self._cluster.store.write({**pod, "metadata": {**pod["metadata"], "annotations": annotations}})

    def _finish(self, pod: Manifest, status: dict[str, Any] | None) -> None:
        """Tell of the end, then remove the pod if somebody has deleted it."""
        current = self._current(pod)
        if current is None:
            return
        if status is not None:
            self._on_end(current)
        if current["metadata"].get("deletionTimestamp") is not None:
            self._cluster.finalize(current)

    # -- its object ----------------------------------------------------------------------------------------------------

    async def _keep_trying(self, pod: Manifest, status: dict[str, Any]) -> None:
        """How a pod ended must be recorded, however long the disk is full."""
        while True:
            try:
                self._cluster.set_status(pod, status)
            except UnavailableError as error:
                log.warning("%s", error)
                await asyncio.sleep(_DISK_RETRY_SECONDS)
            else:
                return

    def _set_status(self, pod: Manifest, status: dict[str, Any]) -> None:
        with contextlib.suppress(UnavailableError):
            self._cluster.set_status(pod, status)

    def _stays(self, pod: Manifest) -> bool:
        """Whether the pod's object outlives its processes."""
        current = self._current(pod)
        return current is not None and current["metadata"].get("deletionTimestamp") is None

    def _latest(self, pod: Manifest) -> Manifest:
        """The pod as it is now, or as it was when it is gone."""
        return self._current(pod) or pod

    def _current(self, pod: Manifest) -> Manifest | None:
        metadata = pod["metadata"]
        found = self._cluster.store.read(kind="Pod", namespace=metadata["namespace"], name=metadata["name"])
        return found if found is not None and found["metadata"]["uid"] == metadata["uid"] else None

    def _files(self, pod: Manifest) -> PodFiles:
        return pod_files(home=self._home, pod=pod)


class _NoRoomError(Exception):
    """There are not enough free GPUs now."""


def _backoff(*, restarts: int, ended: Ended, now: datetime) -> float:
    """Seconds to wait before a container is started again. `restarts`: how often it was before."""
    started = parse_time(ended.started_at) if ended.started_at else None
    if started is not None and (now - started).total_seconds() >= _CALM_SECONDS:
        return _FIRST_BACKOFF_SECONDS
    return min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0 ** min(restarts, 16))


def _last_words(files: PodFiles) -> str:
    try:
        return files.termination_log.read_bytes()[:_MESSAGE_BYTES].decode(errors="replace")
    except OSError:
        return ""
