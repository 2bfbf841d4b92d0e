"""What can be said of an attempt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.results import EvaluateResult, PrepareResult, TrainResult
from finetune_operator.attempts.restarts import Cause

Result = PrepareResult | TrainResult | EvaluateResult


@dataclass(frozen=True, kw_only=True)
class Absent:
    """There is no Job, and no pod that may still run."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Not all pods run yet. `queued`: it waits for room or admission, not for its own start."""

    reason: str
    message: str
    queued: bool = False
    about: str = ""
    """UID of the object of which others may say more; "": nobody knows more."""
    look_again: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Running:
    """All pods run since `since`; the first since `first_started`."""

    since: datetime
    trouble: str = ""
    """What other containers of its pods do wrong."""


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """Something ended it; its last pods have not ended yet."""

    message: str
    look_again: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Succeeded:
    """All pods are done, and the result could be read."""

    result: Result


@dataclass(frozen=True, kw_only=True)
class Broken:
    """It ended without a result. `reason` and `message` are for conditions."""

    cause: Cause
    reason: str = ""
    """Where none is given, the cause."""
    message: str
    checkpoint_step: int | None = None
    """The checkpoint that it said it left."""
    saved_all: bool = False
    """All that it had done: it stopped after a checkpoint of its very last step, or its output is complete."""
    node: str = ""
    """Where it ended, if that node may be to blame."""
    disrupted: bool = False
    """The cluster says that it interrupted the pod."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", self.reason or str(self.cause))


Verdict = Absent | Waiting | Running | Stopping | Succeeded | Broken
