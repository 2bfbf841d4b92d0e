"""All that a decision about one job rests on, gathered once. Nothing here is fetched, everything is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus, StageName
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_operator.attempts.observed import Attempt, AttemptKey
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import ChildRef
from finetune_operator.core.ports import Door, Progress


@dataclass(frozen=True, kw_only=True)
class ObservedClaim:
    """A PersistentVolumeClaim that the job names."""

    name: str
    exists: bool
    access_modes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One job, its children and the world around them at one moment."""

    job: FineTuneJob
    now: datetime
    config: OperatorConfig
    door: Door | None = None
    attempts: Mapping[AttemptKey, Attempt] = field(default_factory=dict)
    attachments: tuple[ChildRef, ...] = ()
    """ConfigMaps and Services of attempts that are to be removed."""
    claims: tuple[ObservedClaim, ...] = ()
    """Looked at until the run is planned."""
    config_data: Mapping[str, str] | None = None
    """Of the ConfigMap that the job names, looked at until the run is planned. None: there is none."""
    endpoint: ModelEndpoint | None = None
    """The endpoint that the job names: looked at until the run is planned, and again once it is evaluated."""
    baseline: ModelVersion | None = None
    """The ModelVersion to beat, looked at until the run is planned."""
    parent: ModelVersion | None = None
    """The ModelVersion to go on from, looked at until the run is planned."""
    versions: tuple[ModelVersion, ...] = ()
    """ModelVersions under the names that this job's could have, looked at once it is evaluated."""
    progress: Progress | None = None
    listening_since: datetime
    wait_words: str | None = None
    """What the attempt waits for, in the words of whoever holds it, as far as they were asked and said so."""

    def attempt(self, stage: StageName, number: int) -> Attempt:
        """An attempt's children; an empty attempt where there are none."""
        return self.attempts.get((stage, number), Attempt())


def recorded_jobs(status: FineTuneJobStatus) -> dict[str, AttemptKey]:
    """The Jobs that were seen, by UID."""
    newest = {stage.child_uid: (stage.name, stage.attempt) for stage in status.stages if stage.child_uid}
    before = {
        stage.previous_child_uid: (stage.name, stage.attempt - 1) for stage in status.stages if stage.previous_child_uid
    }
    return before | newest
