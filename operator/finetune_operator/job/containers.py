"""What the containers of a pod say, read once into plain facts: the one that counts, and those around it.

A pod can hold containers that we did not write: sidecars that a mesh or a cloud's webhook injects, and init containers.
Only the container that counts decides how the pod ends; of the others, what they do wrong is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_operator.job.times import parse_time
from finetune_operator.ports import Manifest

IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_CALM = frozenset({"", "ContainerCreating", "PodInitializing"})
"""What a container waits for while all is well."""
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
    image: str = ""
    waiting_reason: str = ""
    waiting_message: str = ""
    running: bool = False
    ready: bool = False
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
        ended = self.ended or self.last_ended
        what = f"{'init container' if self.init else 'container'} {self.name}"
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
        """The first container that cannot be made, as kubelet comes to them; else the one that counts."""
        return next((each for each in (*self.others, self.main) if each.held), self.main)

    @property
    def trouble(self) -> str:
        """What containers around the one that counts do wrong; "": nothing."""
        return next((each.trouble for each in self.others if each.trouble), "")

    @property
    def initialising(self) -> str:
        """The init container that has begun and has not ended; "": none. Sidecars among them never end."""
        running = [each for each in self.others if each.init and each.running]
        return running[-1].name if running else ""


def read_containers(manifest: Manifest, *, main: str) -> Containers:
    """The containers of a pod; `main` names the one that counts."""
    status = manifest.get("status") or {}
    init = [_read(each, init=True) for each in status.get("initContainerStatuses") or ()]
    rest = [_read(each, init=False) for each in status.get("containerStatuses") or ()]
    counts = next((each for each in rest if each.name == main), ContainerState(name=main))
    return Containers(main=counts, others=(*init, *(each for each in rest if each.name != main)))


def _read(status: dict[str, Any], *, init: bool) -> ContainerState:
    state, last = status.get("state") or {}, (status.get("lastState") or {}).get("terminated")
    waiting, terminated = state.get("waiting") or {}, state.get("terminated")
    begun = state.get("running") or terminated or {}
    return ContainerState(
        name=status.get("name", ""),
        init=init,
        image=status.get("image", ""),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        running="running" in state,
        ready=bool(status.get("ready")),
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
