"""What exists of an attempt: its Job and its pods, found by whose they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from finetune_api.finetunejob import StageName
from finetune_operator.attempts.pods import PodState, attempt_of, read_pod
from finetune_operator.core.controller import ChildRef, ref_of
from finetune_operator.core.ownership import controller_of, is_owned
from finetune_operator.core.ports import Manifest
from finetune_operator.core.times import BEGINNING, parse_time

AttemptKey = tuple[StageName, int]
"""Stage and number of an attempt."""


@dataclass(frozen=True, kw_only=True)
class ChildJob:
    """The batch/v1 Job of an attempt."""

    ref: ChildRef
    created: datetime
    suspended: bool = False
    """Kueue has not admitted it (or took it back)."""
    resumed: datetime | None = None
    """When Kueue admitted it again: pods that were told to end before then are not those that run now."""
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
    ended_by_job: frozenset[str] = frozenset()
    """Names of pods that the Job itself ended, as far as its Events say so."""


def bucket(
    *,
    jobs: list[Manifest],
    pods: list[Manifest],
    owner_uid: str,
    name_of: Callable[[AttemptKey], str],
    recorded: Mapping[str, AttemptKey],
) -> dict[AttemptKey, Attempt]:
    """Children by attempt. A Job is ours by its controlling owner and the name that its attempt has, and a pod by its
    Job: one that is there, or one that was there and is recorded, by its UID. What else has our labels is left out."""
    found: dict[AttemptKey, Attempt] = {}
    known = dict(recorded)
    for job in jobs:
        metadata = job["metadata"]
        if (key := attempt_of(job)) is None or not is_owned(job, uid=owner_uid):
            continue
        if metadata["name"] == name_of(key):
            found[key] = Attempt(job=read_job(job))
            known[metadata["uid"]] = key
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


def read_job(manifest: Manifest) -> ChildJob:
    """The facts of a batch/v1 Job."""
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    true = {type_: each for type_, each in conditions.items() if each.get("status") == "True"}
    failure: dict[str, Any] = true.get("Failed") or true.get("FailureTarget") or {}
    return ChildJob(
        ref=ref_of(manifest),
        created=parse_time(metadata.get("creationTimestamp")) or BEGINNING,
        suspended=bool(manifest["spec"].get("suspend")),
        resumed=parse_time(conditions.get("Suspended", {}).get("lastTransitionTime"))
        if "Suspended" in conditions.keys() - true.keys()
        else None,
        deleting=metadata.get("deletionTimestamp") is not None,
        complete="Complete" in true or "SuccessCriteriaMet" in true,
        failed=bool(failure),
        failed_since=parse_time(failure.get("lastTransitionTime")),
        failure_reason=failure.get("reason", ""),
        failure_message=failure.get("message", ""),
    )


def _with(pods: tuple[PodState, ...], pod: Manifest) -> tuple[PodState, ...]:
    return tuple(sorted((*pods, read_pod(pod)), key=lambda each: (each.index, each.name)))


def _names_job(owner: Mapping[str, Any], *, name: str) -> bool:
    return (owner.get("apiVersion"), owner.get("kind"), owner.get("name")) == ("batch/v1", "Job", name)
