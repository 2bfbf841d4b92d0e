"""What a pod's manifest says, read once into plain facts: the container that counts, and those around it.

A pod can hold containers that we did not write: sidecars that a mesh or a cloud's webhook injects, and init containers.
Only the container that counts decides how the pod ends; of the others, what they do wrong is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from finetune_api.finetunejob import STAGES, StageName
from finetune_operator.core.names import ATTEMPT_LABEL, STAGE_LABEL
from finetune_operator.core.ports import Manifest
from finetune_operator.core.times import BEGINNING, after, parse_time

CONTAINER = "trainer"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
_LOST_NODE_REASONS = frozenset({"DeletionByTaintManager", "DeletionByPodGC", "NodeLost"})
IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
CONFIG_REASONS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "PostStartHookError",
    }
)
_CALM = frozenset({"", "ContainerCreating", "PodInitializing"})
"""What a container waits for while all is well."""
_FLAPPING = 3
"""A container that was started again this often has not recovered because it runs now."""
_LONGEST_MESSAGE = 300


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a container ended."""

    exit_code: int
    reason: str = ""
    """Kubelet's word: Completed, Error, OOMKilled, ..."""
    message: str = ""
    """The termination message."""
    finished: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """One container of a pod."""

    name: str = ""
    init: bool = False
    sidecar: bool = False
    """Kubernetes' own kind: an init container that goes on beside the others (restartPolicy Always)."""
    waiting_reason: str = ""
    waiting_message: str = ""
    running: bool = False
    ready: bool = False
    up: bool = False
    """Kubelet counts it as started: a startup probe, where there is one, has passed."""
    started: datetime | None = None
    ended: Ended | None = None
    last_ended: Ended | None = None
    """How it ended before it was started again."""
    restarts: int = 0

    @property
    def held(self) -> bool:
        """It cannot be made, for now: no image, or a Secret is missing."""
        return self.waiting_reason in IMAGE_REASONS | CONFIG_REASONS

    @property
    def trouble(self) -> str:
        """What is wrong with it; "": nothing."""
        recovered = self.running and self.ready and self.restarts < _FLAPPING
        ended = self.ended or (None if recovered else self.last_ended)
        what = f"{'sidecar' if self.sidecar else 'init container' if self.init else 'container'} {self.name}"
        if ended is not None and ended.exit_code != 0:
            why = f"exit code {ended.exit_code}" + (f", {ended.reason}" if ended.reason not in ("", "Error") else "")
            again = f" {self.restarts} times" if self.restarts > 1 else ""
            return f"{what} ended{again} ({why}): {_short(ended.message)}".rstrip(": ")
        if self.waiting_reason not in _CALM:
            return f"{what} cannot start ({self.waiting_reason}): {_short(self.waiting_message)}".rstrip(": ")
        return ""


@dataclass(frozen=True, kw_only=True)
class Containers:
    """The containers of one pod."""

    main: ContainerState
    others: Sequence[ContainerState] = field(default=())
    """Init containers first, in the pod's order."""

    @property
    def held(self) -> ContainerState:
        """The first container that cannot be made and holds up the one that counts; else that one."""
        return next((each for each in self.others if each.init and each.held), self.main)

    @property
    def trouble(self) -> str:
        """What containers around the one that counts do wrong; "": nothing."""
        return next((each.trouble for each in self.others if each.trouble), "")

    @property
    def initialising(self) -> str:
        """The init container that has begun and has not ended; "": none. A sidecar holds nothing up once it is up."""
        running = [each for each in self.others if each.init and each.running and not (each.sidecar and each.up)]
        return running[-1].name if running else ""


def read_containers(manifest: Manifest, *, main: str) -> Containers:
    """The containers of a pod; `main` names the one that counts."""
    status = manifest.get("status") or {}
    before = (manifest.get("spec") or {}).get("initContainers") or ()
    sidecars = {each["name"] for each in before if each.get("restartPolicy") == "Always"}
    init = [_read(each, init=True, sidecars=sidecars) for each in status.get("initContainerStatuses") or ()]
    rest = [_read(each, init=False) for each in status.get("containerStatuses") or ()]
    counts = next((each for each in rest if each.name == main), ContainerState(name=main))
    return Containers(main=counts, others=(*init, *(each for each in rest if each.name != main)))


def _read(status: dict[str, Any], *, init: bool, sidecars: Collection[str] = ()) -> ContainerState:
    state, last = status.get("state") or {}, (status.get("lastState") or {}).get("terminated")
    waiting, terminated = state.get("waiting") or {}, state.get("terminated")
    begun = state.get("running") or terminated or {}
    return ContainerState(
        name=status.get("name", ""),
        init=init,
        sidecar=status.get("name") in sidecars,
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        running="running" in state,
        ready=bool(status.get("ready")),
        up=bool(status.get("started")),
        started=parse_time(begun.get("startedAt")),
        ended=_ended(terminated) if terminated is not None else None,
        last_ended=_ended(last) if last is not None else None,
        restarts=int(status.get("restartCount") or 0),
    )


def _ended(terminated: dict[str, Any]) -> Ended:
    return Ended(
        exit_code=int(terminated.get("exitCode", 0)),
        reason=terminated.get("reason", ""),
        message=terminated.get("message", ""),
        finished=parse_time(terminated.get("finishedAt")),
    )


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."


@dataclass(frozen=True, kw_only=True)
class PodState:
    """One pod of an attempt. Times are the cluster's."""

    name: str
    uid: str = ""
    index: int
    """Completion index: the node rank."""
    phase: PodPhase = "Pending"
    node: str = ""
    image: str = ""
    """Of the container that it waits for."""
    created: datetime
    scheduled: datetime | None = None
    """When it got a node."""
    unschedulable: str | None = None
    """Why it has no node."""
    gates: tuple[str, ...] = ()
    """Scheduling gates: until others take them away, no node is looked for."""
    started: datetime | None = None
    """When its container began to run, and not before it had a node: clocks of nodes may be slow."""
    ended: Ended | None = None
    waiting_container: str = CONTAINER
    waiting_reason: str = ""
    waiting_message: str = ""
    initialising: str = ""
    """The init container that runs, or ran last."""
    trouble: str = ""
    """What its other containers do wrong."""
    alive: bool | None = None
    """Whether it was at work lately, by its readiness probe. None: it has none, or kubelet has not looked yet."""
    alive_changed: datetime | None = None
    disruption: str = ""
    """The reason of a DisruptionTarget condition, or of the pod's own status where a node ended it; "": none."""
    disruption_message: str = ""
    deletion_requested: datetime | None = None
    deletion_due: datetime | None = None
    """When the grace period is over."""

    @property
    def finished(self) -> bool:
        """Its container has ended for good, whatever else runs in the pod."""
        return self.over or self.ended is not None

    @property
    def over(self) -> bool:
        """All that ran in it has ended."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def done(self) -> bool:
        """Its container has ended well."""
        return self.phase == "Succeeded" if self.ended is None else self.ended.exit_code == 0

    @property
    def running(self) -> bool:
        """Its container runs, as far as kubelet has said."""
        return self.started is not None and not self.finished

    @property
    def homeless(self) -> bool:
        """No node was found for it, or none was looked for yet."""
        return self.scheduled is None and self.started is None and not self.node and not self.finished

    @property
    def node_lost(self) -> bool:
        """Its node does not answer, so nobody can confirm its end."""
        return self.disruption in _LOST_NODE_REASONS

    @property
    def image_problem(self) -> bool:
        """The image cannot be had, for now, and its container waits for it."""
        return self.started is None and self.waiting_reason in IMAGE_REASONS

    @property
    def container_problem(self) -> bool:
        """The container cannot be made, for now: a Secret is missing, a command is wrong."""
        return self.started is None and self.waiting_reason in CONFIG_REASONS

    def gone_by(self, *, lost_pod_seconds: float) -> datetime | None:
        """From when on the pod counts as dead although nobody has confirmed it. None: only kubelet's word counts."""
        if self.deletion_requested is None or self.deletion_due is None:
            return None
        return after(self.deletion_requested if self.node_lost else self.deletion_due, lost_pod_seconds)


def read_pod(manifest: Manifest) -> PodState:
    """The facts of a pod made by one of our Jobs."""
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    conditions = _conditions(manifest)
    containers = read_containers(manifest, main=CONTAINER)
    main, held = containers.main, containers.held
    disruption, disruption_message = _disruption(status=status, conditions=conditions)
    alive, alive_changed = _alive(manifest, main=main, conditions=conditions)
    scheduled = scheduled_since(manifest)
    due = parse_time(metadata.get("deletionTimestamp"))
    return PodState(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        index=int((metadata.get("annotations") or {}).get(INDEX_ANNOTATION, 0)),
        phase=status.get("phase") or "Pending",
        node=manifest["spec"].get("nodeName", ""),
        image=_image(manifest, container=held.name),
        created=parse_time(metadata.get("creationTimestamp")) or BEGINNING,
        scheduled=scheduled,
        unschedulable=unschedulable(manifest),
        gates=tuple(each["name"] for each in manifest["spec"].get("schedulingGates") or ()),
        started=max(main.started, scheduled) if main.started and scheduled else main.started,
        ended=main.ended,
        waiting_container=held.name,
        waiting_reason=held.waiting_reason,
        waiting_message=held.waiting_message,
        initialising=containers.initialising,
        trouble=containers.trouble,
        alive=alive,
        alive_changed=alive_changed,
        disruption=disruption,
        disruption_message=disruption_message,
        deletion_requested=due - timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0) if due else None,
        deletion_due=due,
    )


def attempt_of(manifest: Manifest) -> tuple[StageName, int] | None:
    """Stage and attempt of a child, by its labels; None where they are not ours."""
    labels = manifest["metadata"].get("labels") or {}
    stage = next((stage for stage in STAGES if stage == labels.get(STAGE_LABEL)), None)
    number = labels.get(ATTEMPT_LABEL, "")
    return (stage, int(number)) if stage is not None and number.isdigit() else None


def _alive(
    manifest: Manifest, *, main: ContainerState, conditions: Mapping[str, Mapping[str, Any]]
) -> tuple[bool | None, datetime | None]:
    """What the readiness probe of its container says, and since when."""
    probed = any(each["name"] == CONTAINER and "readinessProbe" in each for each in manifest["spec"]["containers"])
    changed = parse_time((conditions.get("Ready") or {}).get("lastTransitionTime"))
    if not probed or main.started is None or changed is None:
        return None, None
    if main.ready:
        return True, changed
    # Not ready is how every pod begins; that it was ready in between shows in the time of the change.
    return (False, changed) if changed > main.started else (None, None)


def _image(manifest: Manifest, *, container: str) -> str:
    """As the pod's spec writes it; kubelet writes another form into the status once it has it."""
    spec = manifest["spec"]
    containers = (*(spec.get("initContainers") or ()), *spec["containers"])
    return next((each.get("image", "") for each in containers if each["name"] == container), "")


def scheduled_since(manifest: Manifest) -> datetime | None:
    """When the pod got a node."""
    condition = _conditions(manifest).get("PodScheduled") or {}
    return parse_time(condition.get("lastTransitionTime")) if condition.get("status") == "True" else None


def unschedulable(manifest: Manifest) -> str | None:
    """Why the pod has no node; None: it has one, or nobody has said why."""
    condition = _conditions(manifest).get("PodScheduled") or {}
    if condition.get("status") != "False":
        return None
    return condition.get("message") or condition.get("reason") or "no node was found"


def _conditions(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in (manifest.get("status") or {}).get("conditions") or ()}


def _disruption(*, status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    condition = conditions.get("DisruptionTarget") or {}
    if condition.get("status") == "True":
        return condition.get("reason") or "Disrupted", condition.get("message", "")
    # A pod that a node or its kubelet ended, or never took in, has a reason of its own: Evicted, NodeLost, Terminated
    # (node shutdown), OutOfcpu, UnexpectedAdmissionError, ...
    if status.get("phase") == "Failed" and status.get("reason"):
        return status["reason"], status.get("message", "")
    return "", ""
