"""What kubelet does: run the containers of pods, and write what becomes of them into the pods' status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from finetune_operator.job.names import JOB_LABEL
from finetune_operator.job.pods import INDEX_ANNOTATION
from finetune_operator.local import gpus
from finetune_operator.local.cluster import LocalCluster, rfc3339
from finetune_operator.local.environment import (
    ContainerBuilder,
    ContainerConfigError,
    PodFiles,
    clear_scratch,
    pod_files,
)
from finetune_operator.local.home import LocalHome
from finetune_operator.local.processes import Container, Ended, Orders
from finetune_operator.ports import Clock, Manifest, UnavailableError

log = logging.getLogger(__name__)

NODE = "this-machine"
_MESSAGE_BYTES = 4096
_DEFAULT_GRACE_SECONDS = 30
_CONFIG_RETRY_SECONDS = 2.0
_DISK_RETRY_SECONDS = 1.0
_LAST_LOOK_SECONDS = 1.0
"""How long a deleted pod still shows how it ended: its last words may name a checkpoint."""


class PodRunner:
    """Runs pods. `on_end` is told when a container has ended, after the pod's status says so."""

    def __init__(
        self,
        *,
        cluster: LocalCluster,
        home: LocalHome,
        clock: Clock,
        meeting_port: Callable[[Manifest], int],
        on_end: Callable[[Manifest], None],
    ) -> None:
        self._cluster = cluster
        self._home = home
        self._clock = clock
        self._meeting_port = meeting_port
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._starting: set[str] = set()
        cluster.runs_pods(is_running=self.is_running)

    def is_running(self, pod: Manifest) -> bool:
        """Whether there are processes, or an end of theirs that the pod's status does not tell yet."""
        if pod["metadata"]["uid"] in self._starting:
            return True
        return not _is_over(pod) and Container(folder=self._files(pod).folder).exists

    def manage(self, pod: Manifest) -> None:
        """Run a pod, find its processes again, or end them: whatever its object asks for."""
        uid = pod["metadata"]["uid"]
        if pod["metadata"].get("deletionTimestamp") is not None:
            Container(folder=self._files(pod).folder).stop()
        if uid not in self._tasks and (not _is_over(pod) or pod["metadata"].get("deletionTimestamp") is not None):
            task = asyncio.create_task(self._run(pod), name=f"pod {pod['metadata']['name']}")
            self._tasks[uid] = task
            task.add_done_callback(lambda done: self._forget(uid, done))

    def kill(self, pod: Manifest) -> None:
        """End a pod's processes now, without grace."""
        Container(folder=self._files(pod).folder).kill()

    async def close(self) -> None:
        """Watch no longer. The processes go on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, uid: str, done: asyncio.Task[None]) -> None:
        self._tasks.pop(uid, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("%s: %s", done.get_name(), error, exc_info=error)

    async def _run(self, pod: Manifest) -> None:
        """The life of a pod, from wherever it is now to its end."""
        files = self._files(pod)
        container = Container(folder=files.folder)
        if not container.exists:
            if pod["metadata"].get("deletionTimestamp") is not None:
                self._finish(pod, None)
                return
            started = await self._start(pod, files)
            if started is None:
                return
            container = started
        if container.ended() is None:
            self._set_status(pod, _running(pod, since=container.started_at or rfc3339(self._clock())))
            current = self._current(pod)
            if current is None or current["metadata"].get("deletionTimestamp") is not None:
                container.stop()  # deleted while it was being started
        ended = await container.wait()
        clear_scratch(files=files, pod=pod)
        status = _terminated(pod, ended=ended, message=_last_words(files), now=rfc3339(self._clock()))
        await self._keep_trying(pod, status)
        await asyncio.sleep(0 if self._stays(pod) else _LAST_LOOK_SECONDS)
        self._finish(pod, status)

    def _stays(self, pod: Manifest) -> bool:
        """Whether the pod's object outlives its processes."""
        current = self._current(pod)
        return current is not None and current["metadata"].get("deletionTimestamp") is None

    async def _start(self, pod: Manifest, files: PodFiles) -> Container | None:
        """Start the container as soon as it can be made and there is room. None: the pod was deleted meanwhile."""
        while True:
            current = self._current(pod)
            if current is None or current["metadata"].get("deletionTimestamp") is not None:
                self._finish(pod, None)
                return None
            self._starting.add(current["metadata"]["uid"])
            try:
                return await self._try_to_start(current, files)
            except _NoRoomError as error:
                self._set_status(pod, _unschedulable(str(error), now=rfc3339(self._clock())))
            except ContainerConfigError as error:
                self._set_status(pod, _cannot_start(pod, str(error), now=rfc3339(self._clock())))
            except OSError as error:
                message = f"{error.strerror or error}: {error.filename or files.folder}"
                self._set_status(pod, _cannot_start(pod, message, now=rfc3339(self._clock())))
            finally:
                self._starting.discard(current["metadata"]["uid"])
            await asyncio.sleep(_CONFIG_RETRY_SECONDS)

    async def _try_to_start(self, pod: Manifest, files: PodFiles) -> Container:
        pod = self._with_gpus(pod)
        builder = ContainerBuilder(cluster=self._cluster, home=self._home, pod=pod, files=files)
        for folder in (files.folder, files.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        mounts = await builder.volumes()
        environment = await builder.environment(
            mounts=mounts,
            index=int((pod["metadata"].get("annotations") or {}).get(INDEX_ANNOTATION, 0)),
            meeting_port=self._meeting_port(pod),
            gpus=gpus.assigned(pod),
        )
        orders = Orders(
            argv=builder.command(mounts=mounts),
            env=environment,
            cwd=str(files.folder),
            log=str(files.log),
            graceSeconds=pod["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_SECONDS),
        )
        return await Container.start(folder=files.folder, orders=orders)

    def _with_gpus(self, pod: Manifest) -> Manifest:
        """The pod with GPUs of its own, recorded before they are used."""
        wanted = gpus.gpus_wanted(pod)
        if wanted == 0 or gpus.assigned(pod):
            return pod
        machine = gpus.gpus_of_machine()
        others = [each for each in self._cluster.store.find(kind="Pod") if not _is_over(each)]
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

    def _current(self, pod: Manifest) -> Manifest | None:
        metadata = pod["metadata"]
        found = self._cluster.store.read(kind="Pod", namespace=metadata["namespace"], name=metadata["name"])
        return found if found is not None and found["metadata"]["uid"] == metadata["uid"] else None

    def _files(self, pod: Manifest) -> PodFiles:
        return pod_files(home=self._home, pod=pod, job_label=JOB_LABEL)


class _NoRoomError(Exception):
    """There are not enough free GPUs now."""


def _is_over(pod: Manifest) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _last_words(files: PodFiles) -> str:
    try:
        return files.termination_log.read_bytes()[:_MESSAGE_BYTES].decode(errors="replace")
    except OSError:
        return ""


# -- status, in kubelet's shape ---------------------------------------------------------------------------------------


def _status(*, phase: str, conditions: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"phase": phase, "conditions": conditions, **more}


def _scheduled(pod: Manifest) -> dict[str, Any]:
    time = pod["metadata"]["creationTimestamp"]
    return {"type": "PodScheduled", "status": "True", "lastTransitionTime": time}


def _container_status(pod: Manifest, *, state: dict[str, Any], ready: bool = False) -> dict[str, Any]:
    container = pod["spec"]["containers"][0]
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }


def _unschedulable(message: str, *, now: str) -> dict[str, Any]:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": now,
    }
    return _status(phase="Pending", conditions=[condition])


def _cannot_start(pod: Manifest, message: str, *, now: str) -> dict[str, Any]:
    state = {"waiting": {"reason": "CreateContainerConfigError", "message": message}}
    status = _container_status(pod, state=state)
    return _status(phase="Pending", conditions=[_scheduled(pod)], containerStatuses=[status])


def _running(pod: Manifest, *, since: str) -> dict[str, Any]:
    status = _container_status(pod, state={"running": {"startedAt": since}}, ready=True)
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": since}
    return _status(phase="Running", conditions=[_scheduled(pod), ready], startTime=since, containerStatuses=[status])


def _terminated(pod: Manifest, *, ended: Ended, message: str, now: str) -> dict[str, Any]:
    state: dict[str, Any] = {
        "exitCode": ended.exit_code,
        "reason": "ContainerStatusUnknown" if ended.unknown else ended.reason or _reason(ended),
        "startedAt": ended.started_at or now,
        "finishedAt": ended.finished_at or now,
    }
    if message or ended.message:
        state["message"] = message or ended.message
    if ended.signal is not None:
        state["signal"] = ended.signal
    status = _container_status(pod, state={"terminated": state})
    return _status(
        phase="Succeeded" if ended.exit_code == 0 else "Failed",
        conditions=[_scheduled(pod)],
        startTime=state["startedAt"],
        containerStatuses=[status],
    )


def _reason(ended: Ended) -> str:
    return "Completed" if ended.exit_code == 0 else "Error"
