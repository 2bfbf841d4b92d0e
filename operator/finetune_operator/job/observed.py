"""All that a decision about one job rests on, gathered once. Nothing here is fetched, everything is frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus, StageName
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_operator.config import OperatorConfig
from finetune_operator.controller import ChildRef
from finetune_operator.job.pods import PodState, attempt_of, read_pod
from finetune_operator.job.times import BEGINNING, parse_time
from finetune_operator.ownership import controller_of, is_owned
from finetune_operator.ports import Door, Manifest, Progress

AttemptKey = tuple[StageName, int]
"""Stage and number of an attempt."""


@dataclass(frozen=True, kw_only=True)
class ChildJob:
    """The batch/v1 Job of an attempt."""

    ref: ChildRef
    created: datetime
    suspended: bool = False
    """Kueue has not admitted it (or took it back)."""
    deleting: bool = False
    complete: bool = False
    failed: bool = False
    """It has failed, or is about to: the Job controller ends its other pods."""
    failed_since: datetime | None = None
    failure_reason: str = ""
    failure_message: str = ""

    @property
    def finished(self) -> bool:
        """Its pods are done or being ended."""
        return self.complete or self.failed


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What exists of one attempt of a stage: its Job, its pods, both or neither."""

    job: ChildJob | None = None
    pods: tuple[PodState, ...] = ()
    strays: tuple[PodState, ...] = ()
    """Pods of a Job of this name that is gone and was never seen. Nothing that they say is believed, but while they
    may run, nothing else may begin beside them."""


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
    endpoint: ModelEndpoint | None = None
    """The endpoint that the job names: looked at until the run is planned, and again once it is evaluated."""
    baseline: ModelVersion | None = None
    """The ModelVersion to beat, looked at until the run is planned."""
    versions: tuple[ModelVersion, ...] = ()
    """ModelVersions under the names that this job's could have, looked at once it is evaluated."""
    progress: Progress | None = None
    listening_since: datetime
    wait_words: str | None = None
    """What the attempt waits for, in the words of whoever holds it, as far as they were asked and said so."""

    def attempt(self, stage: StageName, number: int) -> Attempt:
        """An attempt's children; an empty attempt where there are none."""
        return self.attempts.get((stage, number), Attempt())


def bucket(
    *,
    jobs: list[Manifest],
    pods: list[Manifest],
    owner_uid: str,
    name_of: Callable[[AttemptKey], str],
    recorded: Mapping[str, AttemptKey],
) -> dict[AttemptKey, Attempt]:
    """Children by attempt. A Job is ours by its controlling owner, and a pod by its Job: one that is there, or one that
    was there and is recorded, by its UID. What else has our labels is left out."""
    found: dict[AttemptKey, Attempt] = {}
    known = dict(recorded)
    for job in jobs:
        if (key := attempt_of(job)) is not None and is_owned(job, uid=owner_uid):
            found[key] = Attempt(job=read_job(job))
            known[job["metadata"]["uid"]] = key
    living = {job["metadata"]["uid"] for job in jobs}
    for pod in pods:
        owner, labelled = controller_of(pod), attempt_of(pod)
        if (key := known.get(owner.get("uid", ""))) is not None:
            attempt = found.get(key, Attempt())
            found[key] = replace(attempt, pods=_with(attempt.pods, pod))
        elif labelled and _names_job(owner, name=name_of(labelled)) and owner["uid"] not in living:
            attempt = found.get(labelled, Attempt())
            found[labelled] = replace(attempt, strays=_with(attempt.strays, pod))
    return dict(sorted(found.items()))


def recorded_jobs(status: FineTuneJobStatus) -> dict[str, AttemptKey]:
    """The Jobs that were seen, by UID."""
    newest = {stage.child_uid: (stage.name, stage.attempt) for stage in status.stages if stage.child_uid}
    before = {
        stage.previous_child_uid: (stage.name, stage.attempt - 1) for stage in status.stages if stage.previous_child_uid
    }
    return before | newest


def read_job(manifest: Manifest) -> ChildJob:
    """The facts of a batch/v1 Job."""
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    true = {each["type"]: each for each in status.get("conditions") or () if each.get("status") == "True"}
    failure: dict[str, Any] = true.get("Failed") or true.get("FailureTarget") or {}
    return ChildJob(
        ref=ref_of(manifest),
        created=parse_time(metadata.get("creationTimestamp")) or BEGINNING,
        suspended=bool(manifest["spec"].get("suspend")),
        deleting=metadata.get("deletionTimestamp") is not None,
        complete="Complete" in true or "SuccessCriteriaMet" in true,
        failed=bool(failure),
        failed_since=parse_time(failure.get("lastTransitionTime")),
        failure_reason=failure.get("reason", ""),
        failure_message=failure.get("message", ""),
    )


def ref_of(manifest: Manifest) -> ChildRef:
    """How to name a child."""
    metadata = manifest["metadata"]
    return ChildRef(
        kind=manifest["kind"], namespace=metadata["namespace"], name=metadata["name"], uid=metadata.get("uid", "")
    )


def _with(pods: tuple[PodState, ...], pod: Manifest) -> tuple[PodState, ...]:
    return tuple(sorted((*pods, read_pod(pod)), key=lambda each: (each.index, each.name)))


def _names_job(owner: Mapping[str, Any], *, name: str) -> bool:
    return (owner.get("apiVersion"), owner.get("kind"), owner.get("name")) == ("batch/v1", "Job", name)
