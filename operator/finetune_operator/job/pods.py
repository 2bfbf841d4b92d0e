"""What a pod's manifest says about its container, read once into plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from finetune_api.finetunejob import STAGES, StageName
from finetune_operator.job.containers import CONFIG_REASONS, IMAGE_REASONS, ContainerState, Ended, read_containers
from finetune_operator.job.names import ATTEMPT_LABEL, STAGE_LABEL
from finetune_operator.job.times import BEGINNING, after, parse_time
from finetune_operator.ports import Manifest

CONTAINER = "trainer"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
_LOST_NODE_REASONS = frozenset({"DeletionByTaintManager", "DeletionByPodGC", "NodeLost"})


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
    started: datetime | None = None
    """When its container began to run."""
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
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    containers = read_containers(manifest, main=CONTAINER)
    main, held = containers.main, containers.held
    disruption, disruption_message = _disruption(status=status, conditions=conditions)
    alive, alive_changed = _alive(manifest, main=main, conditions=conditions)
    due = parse_time(metadata.get("deletionTimestamp"))
    return PodState(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        index=int((metadata.get("annotations") or {}).get(INDEX_ANNOTATION, 0)),
        phase=status.get("phase") or "Pending",
        node=manifest["spec"].get("nodeName", ""),
        image=_image(manifest, container=held.name),
        created=parse_time(metadata.get("creationTimestamp")) or BEGINNING,
        scheduled=_scheduled(conditions),
        unschedulable=_unschedulable(conditions),
        started=main.started,
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


def _scheduled(conditions: Mapping[str, Mapping[str, Any]]) -> datetime | None:
    condition = conditions.get("PodScheduled") or {}
    return parse_time(condition.get("lastTransitionTime")) if condition.get("status") == "True" else None


def _unschedulable(conditions: Mapping[str, Mapping[str, Any]]) -> str | None:
    condition = conditions.get("PodScheduled") or {}
    if condition.get("status") != "False":
        return None
    return condition.get("message") or condition.get("reason") or "no node was found"


def _disruption(*, status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    condition = conditions.get("DisruptionTarget") or {}
    if condition.get("status") == "True":
        return condition.get("reason") or "Disrupted", condition.get("message", "")
    # A pod that a node or its kubelet ended, or never took in, has a reason of its own: Evicted, NodeLost, Terminated
    # (node shutdown), OutOfcpu, UnexpectedAdmissionError, ...
    if status.get("phase") == "Failed" and status.get("reason"):
        return status["reason"], status.get("message", "")
    return "", ""
