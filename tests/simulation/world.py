"""The world around the operator: a clock, the Job controller, kubelets, trainers that report, and a user.

It moves only when `tick` is called, by five seconds. Statuses of Jobs and pods look like those of a real cluster
(Kubernetes 1.36); what is left out is what the operator never reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry
from tests.conformance.objects import CONFIG, START, evaluate_result, prepare_result, train_result
from tests.simulation.memory_cluster import MemoryCluster
from tests.simulation.script import Disrupt, Exit, Fate, Hang, Script, Succeed, Wait, stopped

from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus, ProgressMetric, TrainerStatus
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import Surroundings
from finetune_operator.core.ports import Cluster, ConflictError, Door, Key, Manifest, Progress, UnavailableError
from finetune_operator.kube.inboxes import ObservationInbox
from finetune_operator.metrics import Metrics
from finetune_operator.reconcile import Reconciler

TICK = timedelta(seconds=5)
STEPS_PER_TICK = 10
CHECKPOINT_EVERY = 20
DOOR = Door(url="https://door.example", ca_bundle="-----BEGIN CERTIFICATE-----\n")


class Reports:
    """The operator's inbox of progress reports, on the world's clock."""

    def __init__(self, *, listening_since: datetime) -> None:
        self.listening_since = listening_since
        self._latest: dict[str, Progress] = {}

    def report(self, *, uid: str, step: int, now: datetime) -> None:
        """A training pod says how far it is."""
        saved = step // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        values = {"step": step, "checkpoint_step": saved, "loss": round(2.0 / (1 + step), 4)}
        metrics = [ProgressMetric(name=name, value=str(value)) for name, value in values.items()]
        status = TrainerStatus(progress_percentage=min(100, step), metrics=metrics)
        self._latest[uid] = Progress(status=status, received=now)

    def latest(self, *, uid: str) -> Progress | None:
        """The newest report."""
        return self._latest.get(uid)

    def forget(self, *, uid: str) -> None:
        """Drop it."""
        self._latest.pop(uid, None)


class World:
    """One namespace `ml` with FineTuneJobs whose pods live and die by a script."""

    def __init__(self, *, script: Script | None = None, config: OperatorConfig = CONFIG) -> None:
        self.now = START
        self.script = script or Script()
        self.script.succeed.update(
            {
                "Prepare": prepare_result(),
                "Train": train_result(),
                "Evaluate": self.script.succeed.get("Evaluate", evaluate_result()),
            }
        )
        self.config = config
        self.cluster = MemoryCluster(clock=lambda: self.now)
        self.nodes = ["node1", "node2"]
        """In the order in which the scheduler likes them; it does not mind wishes."""
        self.broken_nodes: set[str] = set()
        """These refuse every pod."""
        self.created: list[str] = []
        """Jobs and ModelVersions that were ever made, in order."""
        self.restart_operator()

    def restart_operator(self, *, cluster: Callable[[Cluster], Cluster] = lambda cluster: cluster) -> None:
        """A new operator process: all that the old one kept in memory is gone."""
        self.reports = Reports(listening_since=self.now)
        self.observations = ObservationInbox(enqueue=lambda key: None, clock=lambda: self.now)
        self.metrics = Metrics(registry=CollectorRegistry())
        self.reconciler = Reconciler(
            metrics=self.metrics,
            around=Surroundings(
                cluster=cluster(self.cluster),
                config=self.config,
                progress=self.reports,
                clock=lambda: self.now,
                door=lambda: DOOR,
                observations=self.observations,
            ),
        )

    # -- what a user sees ---------------------------------------------------------------------------------------------

    async def submit(self, manifest: Manifest) -> Key:
        """kubectl create; the claim that the job names is there."""
        if await self.cluster.get(kind="PersistentVolumeClaim", namespace="ml", name="models") is None:
            await self.cluster.create(manifest=claim("models", access_mode="ReadWriteMany"))
        created = await self.cluster.create(manifest=manifest)
        return Key(kind="FineTuneJob", namespace="ml", name=created["metadata"]["name"])

    async def job(self, key: Key) -> FineTuneJob:
        """kubectl get."""
        found = await self.cluster.get(kind="FineTuneJob", namespace=key.namespace, name=key.name)
        assert found is not None
        return FineTuneJob.from_object(found)

    async def status(self, key: Key) -> FineTuneJobStatus:
        """The job's status."""
        return (await self.job(key)).status

    def snapshot_of_children(self) -> list[tuple[str, str]]:
        """Kind and name of all that the operator made and that is still there."""
        kinds = ("Job", "ConfigMap", "Service", "ModelVersion")
        return [(kind, name) for kind, _, name in self.cluster.snapshot() if kind in kinds]

    def change_spec(self, key: Key, **changes: Any) -> None:
        """kubectl patch."""
        self.cluster.edit(
            kind="FineTuneJob", namespace=key.namespace, name=key.name, change=lambda job: job["spec"].update(changes)
        )

    def annotate(self, key: Key, annotations: dict[str, str]) -> None:
        """kubectl annotate."""
        self.cluster.edit(
            kind="FineTuneJob",
            namespace=key.namespace,
            name=key.name,
            change=lambda job: job["metadata"].setdefault("annotations", {}).update(annotations),
        )

    # -- time passes --------------------------------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> float | None:
        """The operator looks, as after an event. Errors of the cluster are tried again, as by the queue."""
        for _ in range(10):
            try:
                return await self.reconciler.reconcile(key)
            except (ConflictError, UnavailableError):
                continue
        raise AssertionError("the operator does not get through")

    async def tick(self) -> None:
        """Five seconds of everybody else's work."""
        self.now += TICK
        for manifest in await self.cluster.list(kind="Job", namespace="ml"):
            await self._play_job(manifest)
        for pod in await self.cluster.list(kind="Pod", namespace="ml"):
            self._end_terminating(pod)

    async def run(
        self, key: Key, *, until: Callable[[FineTuneJobStatus], object], ticks: int = 400
    ) -> FineTuneJobStatus:
        """Let time pass until the status is as wanted."""
        for _ in range(ticks):
            await self.reconcile(key)
            status = await self.status(key)
            if until(status):
                return status
            await self.tick()
            await self._check_one_gang()
        raise AssertionError(f"not reached within {ticks} ticks: {(await self.status(key)).to_dict()}")

    async def _check_one_gang(self) -> None:
        """Two attempts never run at the same time: they would write to one folder."""
        running = {
            (pod["metadata"]["labels"]["finetune.dev/stage"], pod["metadata"]["labels"]["finetune.dev/attempt"])
            for pod in await self.cluster.list(kind="Pod", namespace="ml")
            if "running" in _state(pod) and not _is_lost(pod)
        }
        assert len(running) <= 1, running

    # -- the Job controller -------------------------------------------------------------------------------------------

    async def _play_job(self, manifest: Manifest) -> None:
        labels = manifest["metadata"]["labels"]
        name = manifest["metadata"]["name"]
        if name not in self.created:
            self.created.append(name)
        fate = self.script.fate(stage=labels["finetune.dev/stage"], attempt=int(labels["finetune.dev/attempt"]))
        if manifest["spec"].get("suspend") or _finished(manifest):
            return
        if isinstance(fate, Wait) and fate.how == "NoPods":
            return
        await self._make_pods(manifest)
        for pod in await self._pods_of(name):
            await self._play_pod(pod, fate=fate, manifest=manifest)
        await self._judge(manifest)

    async def _pods_of(self, job: str) -> list[Manifest]:
        return await self.cluster.list(kind="Pod", namespace="ml", labels={"batch.kubernetes.io/job-name": job})

    async def _make_pods(self, manifest: Manifest) -> None:
        if (manifest.get("status") or {}).get("made"):
            return
        template, metadata = manifest["spec"]["template"], manifest["metadata"]
        for index in range(manifest["spec"]["completions"]):
            await self.cluster.create(
                manifest={
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{metadata['name']}-{index}-x{index}yz",
                        "namespace": "ml",
                        "labels": template["metadata"]["labels"] | {"batch.kubernetes.io/job-name": metadata["name"]},
                        "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
                        "ownerReferences": [
                            {
                                "apiVersion": "batch/v1",
                                "kind": "Job",
                                "name": metadata["name"],
                                "uid": metadata["uid"],
                                "controller": True,
                            }
                        ],
                    },
                    "spec": template["spec"],
                }
            )
        self._set_status("Job", metadata["name"], lambda status: status.update({"made": True}))

    async def _judge(self, manifest: Manifest) -> None:
        """backoffLimit 0: the first pod that fails fails the Job, and the other pods are told to end."""
        pods = await self._pods_of(manifest["metadata"]["name"])
        failed = [pod for pod in pods if pod["status"].get("phase") == "Failed"]
        missing = manifest["spec"]["completions"] - len(pods)
        if failed or missing:
            reason, message = _failure_of(failed)
            self._finish(manifest, type_="Failed", reason=reason, message=message)
            for pod in pods:
                if pod not in failed:
                    await self._delete_pod_of(manifest, pod["metadata"])
        elif pods and all(pod["status"].get("phase") == "Succeeded" for pod in pods):
            self._finish(manifest, type_="Complete", reason="CompletionsReached", message="")

    async def _delete_pod_of(self, job: Manifest, pod: Mapping[str, Any]) -> None:
        await self.cluster.delete(kind="Pod", namespace="ml", name=pod["name"], uid=pod["uid"])
        await self.cluster.create(
            manifest={
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": f"{pod['name']}.deleted", "namespace": "ml"},
                "type": "Normal",
                "reason": "SuccessfulDelete",
                "note": f"Deleted pod: {pod['name']}",
                "eventTime": self._time(),
                "regarding": {"uid": job["metadata"]["uid"]},
            }
        )

    def _finish(self, manifest: Manifest, *, type_: str, reason: str, message: str) -> None:
        condition = {
            "type": type_,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": self._time(),
        }
        self._set_status(
            "Job", manifest["metadata"]["name"], lambda status: status.setdefault("conditions", []).append(condition)
        )

    # -- kubelet and the container ------------------------------------------------------------------------------------

    async def _play_pod(self, pod: Manifest, *, fate: Fate, manifest: Manifest) -> None:
        name = pod["metadata"]["name"]
        status = pod.get("status") or {}
        if "deletionTimestamp" in pod["metadata"] or status.get("phase") in ("Succeeded", "Failed"):
            return
        if not status.get("conditions") or _is_homeless(status):
            self._schedule(pod, fate=fate)
        elif pod["spec"].get("nodeName") in self.broken_nodes:
            refused = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
            self._set_status("Pod", name, lambda status: status.update(refused))
        elif "running" not in _state(pod):
            self._start(name, fate=fate)
        else:
            await self._live(pod, fate=fate, manifest=manifest)

    def _schedule(self, pod: Manifest, *, fate: Fate) -> None:
        name, never = pod["metadata"]["name"], _forbidden_nodes(pod)
        node = next((each for each in self.nodes if each not in never), "")
        homeless = not node or (isinstance(fate, Wait) and fate.how == "Unschedulable")
        condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": self._time()}
        if homeless:
            condition |= {"status": "False", "reason": "Unschedulable", "message": getattr(fate, "message", "no node")}
        self._set_status("Pod", name, lambda status: status.update({"phase": "Pending", "conditions": [condition]}))
        if not homeless:
            self.cluster.edit(
                kind="Pod", namespace="ml", name=name, change=lambda pod: pod["spec"].update(nodeName=node)
            )

    def _start(self, name: str, *, fate: Fate) -> None:
        if isinstance(fate, Wait):
            if fate.how != "Unschedulable":
                message = f'Back-off pulling image "{self.config.trainer_image}"'
                self._set_container(name, {"waiting": {"reason": fate.how, "message": message}}, phase="Pending")
            return
        self._set_container(name, {"running": {"startedAt": self._time()}}, phase="Running")

    async def _live(self, pod: Manifest, *, fate: Fate, manifest: Manifest) -> None:
        stage = pod["metadata"]["labels"]["finetune.dev/stage"]
        index = int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])
        age = _age(pod, now=self.now)
        self._probe(pod, fate=fate, age=age)
        heard = getattr(fate, "reports", True) and (age == 0 or not isinstance(fate, Hang))
        if stage == "Train" and heard and index == 0:
            uid = pod["metadata"]["labels"]["finetune.dev/job-uid"]
            self.reports.report(uid=uid, step=age * STEPS_PER_TICK, now=self.now)
        if isinstance(fate, Hang) or age < getattr(fate, "ticks", 2):
            return
        if isinstance(fate, Succeed):
            self._end(pod, code=0, message=_text(fate.result), reason="Completed")
        elif isinstance(fate, Exit) and index == fate.pod:
            self._end(pod, code=fate.code, message=_text(fate.failure), reason=fate.reason)
        elif isinstance(fate, Disrupt) and index == 0:
            await self._disrupt(pod, fate=fate, manifest=manifest)

    def _probe(self, pod: Manifest, *, fate: Fate, age: int) -> None:
        """Readiness: at work in the last `window` seconds."""
        probe = pod["spec"]["containers"][0].get("readinessProbe")
        if probe is None or not getattr(fate, "probed", True):
            return
        window = int(probe["exec"]["command"][-1])
        ready = not isinstance(fate, Hang) or age * TICK.total_seconds() < window
        if bool(pod["status"]["containerStatuses"][0].get("ready")) == ready:
            return
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": self._time()}

        def change(status: dict[str, Any]) -> None:
            status["conditions"] = [each for each in status["conditions"] if each["type"] != "Ready"] + [condition]
            status["containerStatuses"][0]["ready"] = ready

        self._set_status("Pod", pod["metadata"]["name"], change)

    async def _disrupt(self, pod: Manifest, *, fate: Disrupt, manifest: Manifest) -> None:
        name, metadata = pod["metadata"]["name"], manifest["metadata"]
        if fate.how == "JobDeleted":
            await self.cluster.delete(kind="Job", namespace="ml", name=metadata["name"], uid=metadata["uid"])
            return
        reasons = {"Evicted": "EvictionByEvictionAPI", "NodeLost": "DeletionByTaintManager"}
        if fate.how in reasons:
            target = {"type": "DisruptionTarget", "status": "True", "reason": reasons[fate.how], "message": "drained"}
            self._set_status("Pod", name, lambda status: status["conditions"].append(target))
        await self.cluster.delete(kind="Pod", namespace="ml", name=name, uid=pod["metadata"]["uid"])

    def _end_terminating(self, pod: Manifest) -> None:
        """SIGTERM: the container saves and ends, and kubelet lets the object go a tick later."""
        metadata = pod["metadata"]
        if "deletionTimestamp" not in metadata or _is_lost(pod):
            return
        if pod["status"].get("phase") in ("Succeeded", "Failed") or "running" not in _state(pod):
            self.cluster.remove(kind="Pod", namespace="ml", name=metadata["name"])
            return
        fate = self.script.fate(
            stage=metadata["labels"]["finetune.dev/stage"], attempt=int(metadata["labels"]["finetune.dev/attempt"])
        )
        if isinstance(fate, Disrupt) and not fate.saves:
            self._end(pod, code=137, message="", reason="Error")
            return
        step = _age(pod, now=self.now) * STEPS_PER_TICK
        self._end(pod, code=75, message=_text(stopped(step=step)), reason="Error")

    def _end(self, pod: Manifest, *, code: int, message: str, reason: str) -> None:
        terminated = {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "startedAt": _state(pod)["running"]["startedAt"],
            "finishedAt": self._time(),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        self._set_container(pod["metadata"]["name"], {"terminated": terminated}, phase=phase)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _set_container(self, name: str, state: dict[str, Any], *, phase: str) -> None:
        self._set_status(
            "Pod",
            name,
            lambda status: status.update({"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]}),
        )

    def _set_status(self, kind: Any, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        self.cluster.edit(
            kind=kind, namespace="ml", name=name, change=lambda found: void(change(found.setdefault("status", {})))
        )

    def _time(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")


def claim(name: str, *, access_mode: str) -> Manifest:
    """A PersistentVolumeClaim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "ml"},
        "spec": {"accessModes": [access_mode]},
    }


def void(_: object) -> None:
    """Nothing: for functions that change in place."""


def _text(said: Any) -> str:
    return "" if said is None else str(said.model_dump_json(by_alias=True, exclude_none=True))


def _state(pod: Manifest) -> dict[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    state: dict[str, Any] = statuses[0].get("state", {})
    return state


def _is_homeless(status: dict[str, Any]) -> bool:
    return any(each["type"] == "PodScheduled" and each["status"] == "False" for each in status["conditions"])


def _forbidden_nodes(pod: Manifest) -> set[str]:
    """Nodes that the pod's affinity rules out."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    fields = [each for term in required.get("nodeSelectorTerms") or () for each in term["matchFields"]]
    return {each["values"][0] for each in fields}


def _age(pod: Manifest, *, now: datetime) -> int:
    """Ticks since the container started."""
    started = datetime.fromisoformat(_state(pod)["running"]["startedAt"])
    return int((now - started) / TICK)


def _finished(job: Manifest) -> bool:
    return bool((job.get("status") or {}).get("conditions"))


def _is_lost(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(condition.get("reason") == "DeletionByTaintManager" for condition in conditions)


def _failure_of(failed: list[Manifest]) -> tuple[str, str]:
    """Reason and message of the Job's condition, by its podFailurePolicy."""
    for pod in failed:
        code = _state(pod).get("terminated", {}).get("exitCode")
        index = 0 if code == 75 else 1 if code in (65, 66, 78) else None
        if index is not None:
            text = f"Container trainer for pod ml/{pod['metadata']['name']} failed with exit code {code} matching"
            return "PodFailurePolicy", f"{text} FailJob rule at index {index}"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
