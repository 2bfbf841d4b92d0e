"""Gathers what `job.decide` needs to know about one job, with as few reads as that takes.

A job that runs costs two lists, side by side; the rest is read only when the decision hangs on it (job.questions).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_operator.config import OperatorConfig
from finetune_operator.controller import ChildRef
from finetune_operator.job import questions
from finetune_operator.job.cleanup import removable
from finetune_operator.job.names import JOB_UID_LABEL, child_name
from finetune_operator.job.observed import (
    Attempt,
    AttemptKey,
    ChildJob,
    Observed,
    ObservedClaim,
    bucket,
    recorded_jobs,
    ref_of,
)
from finetune_operator.job.verdicts import Waiting
from finetune_operator.ownership import is_owned
from finetune_operator.ports import Cluster, Door, Kind, NotFoundError, ProgressSource, UnavailableError

_TELLING = ("Pulling", "Pulled", "ExternalProvisioning", "WaitForFirstConsumer", "WaitForPodScheduled")
"""Normal Events that say what is waited for, or that it is over."""
_LONGEST_WORDS = 500
_KUEUE_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"


async def observe_job(
    *,
    cluster: Cluster,
    job: FineTuneJob,
    now: datetime,
    config: OperatorConfig,
    progress: ProgressSource,
    door: Door | None,
) -> Observed:
    """One job and the world around it. Raises UnavailableError; pydantic.ValidationError for a broken ModelVersion."""
    observed = Observed(
        job=job,
        now=now,
        config=config,
        door=door,
        progress=progress.latest(uid=job.metadata.uid),
        listening_since=progress.listening_since,
    )
    if questions.is_new(job):
        return await _with_references(cluster=cluster, observed=observed)
    observed = await _with_children(cluster=cluster, observed=observed)
    names = questions.version_names(job)
    if names:
        versions = await asyncio.gather(*(_version(cluster=cluster, job=job, name=name) for name in names))
        observed = replace(observed, versions=tuple(version for version in versions if version is not None))
        observed = await _with_endpoint(cluster=cluster, observed=observed)
    waiting = questions.waiting_job(observed)
    if waiting is not None:
        observed = await _with_words(cluster=cluster, observed=observed, job=waiting[0], waiting=waiting[1])
    return observed


async def _with_references(*, cluster: Cluster, observed: Observed) -> Observed:
    """What the job names and others made."""
    job = observed.job
    names = questions.claim_names(job)
    found = await asyncio.gather(*(_claim(cluster=cluster, job=job, name=name) for name in names))
    observed = await _with_endpoint(cluster=cluster, observed=observed)
    baseline = questions.baseline_name(job, endpoint=observed.endpoint)
    version = await _version(cluster=cluster, job=job, name=baseline) if baseline else None
    return replace(observed, claims=tuple(found), baseline=version)


async def _with_endpoint(*, cluster: Cluster, observed: Observed) -> Observed:
    job = observed.job
    name = questions.endpoint_name(job)
    if name is None:
        return observed
    found = await cluster.get(kind="ModelEndpoint", namespace=job.metadata.namespace, name=name)
    return replace(observed, endpoint=ModelEndpoint.from_object(found) if found is not None else None)


async def _with_children(*, cluster: Cluster, observed: Observed) -> Observed:
    job = observed.job
    namespace, labels = job.metadata.namespace, {JOB_UID_LABEL: job.metadata.uid}
    jobs, pods = await asyncio.gather(
        cluster.list(kind="Job", namespace=namespace, labels=labels),
        cluster.list(kind="Pod", namespace=namespace, labels=labels),
    )
    attempts = bucket(
        jobs=jobs,
        pods=pods,
        owner_uid=job.metadata.uid,
        name_of=lambda key: child_name(job=job.metadata.name, stage=key[0], attempt=key[1]),
        recorded=recorded_jobs(job.status),
    )
    attachments = await _attachments(cluster=cluster, observed=observed, attempts=attempts)
    return replace(observed, attempts=attempts, attachments=attachments)


async def _attachments(
    *, cluster: Cluster, observed: Observed, attempts: Mapping[AttemptKey, Attempt]
) -> tuple[ChildRef, ...]:
    """ConfigMaps and Services of the attempts that are to be removed. They are not listed: the operator has no right to
    list them."""
    job = observed.job
    wanted: list[tuple[Kind, str]] = [
        (kind, child_name(job=job.metadata.name, stage=stage, attempt=number))
        for stage, number in removable(job=job, attempts=attempts, now=observed.now)
        for kind in ("ConfigMap", "Service")
    ]
    found = await asyncio.gather(
        *(cluster.get(kind=kind, namespace=job.metadata.namespace, name=name) for kind, name in wanted)
    )
    return tuple(ref_of(each) for each in found if each is not None and is_owned(each, uid=job.metadata.uid))


async def _claim(*, cluster: Cluster, job: FineTuneJob, name: str) -> ObservedClaim:
    found = await cluster.get(kind="PersistentVolumeClaim", namespace=job.metadata.namespace, name=name)
    modes = tuple((found or {}).get("spec", {}).get("accessModes") or ())
    return ObservedClaim(name=name, exists=found is not None, access_modes=modes)


async def _version(*, cluster: Cluster, job: FineTuneJob, name: str) -> ModelVersion | None:
    found = await cluster.get(kind="ModelVersion", namespace=job.metadata.namespace, name=name)
    return ModelVersion.model_validate(found) if found is not None else None


# -- why a Job waits --------------------------------------------------------------------------------------------------


async def _with_words(*, cluster: Cluster, observed: Observed, job: ChildJob, waiting: Waiting) -> Observed:
    """Others' words on why a Job does not run. Nothing hangs on them but a message: not to get them is no error."""
    try:
        if waiting.reason == "Queued":
            return replace(observed, wait_words=await _queue_message(cluster=cluster, job=job))
        if waiting.reason == "Unschedulable":
            return replace(observed, wait_words=await _unbound(cluster=cluster, job=observed.job))
        return replace(observed, wait_words=await _said(cluster=cluster, job=job, uid=waiting.about))
    except (NotFoundError, UnavailableError):
        return observed


async def _queue_message(*, cluster: Cluster, job: ChildJob) -> str | None:
    """What Kueue says about the Job's Workload."""
    labels = {_KUEUE_JOB_UID_LABEL: job.ref.uid}
    for workload in await cluster.list(kind="Workload", namespace=job.ref.namespace, labels=labels):
        for condition in (workload.get("status") or {}).get("conditions") or ():
            if condition.get("type") == "QuotaReserved" and condition.get("status") == "False":
                return f"Kueue: {condition.get('message') or condition.get('reason')}"
    return None


async def _unbound(*, cluster: Cluster, job: FineTuneJob) -> str | None:
    """The claim that has no volume yet, and why."""
    namespace = job.metadata.namespace
    for name in questions.claim_names(job):
        claim = await cluster.get(kind="PersistentVolumeClaim", namespace=namespace, name=name)
        phase = ((claim or {}).get("status") or {}).get("phase", "")
        if claim is None:
            return f"there is no PersistentVolumeClaim {name} any more"
        if phase in ("Pending", "Lost"):
            why = newest_words(await cluster.events_about(namespace=namespace, uid=claim["metadata"].get("uid", "")))
            return ": ".join(each for each in (f"PersistentVolumeClaim {name} is {phase}", why) if each)
    return None


async def _said(*, cluster: Cluster, job: ChildJob, uid: str) -> str | None:
    return newest_words(await cluster.events_about(namespace=job.ref.namespace, uid=uid))


def newest_words(events: Sequence[Mapping[str, Any]]) -> str | None:
    """The newest trouble that Events tell of, or the image that is being pulled."""
    telling = [each for each in events if each.get("type") != "Normal" or each.get("reason") in _TELLING]
    newest = max(telling, key=_time_of_event, default=None)
    if newest is None or newest.get("reason") == "Pulled":
        return None
    note = " ".join(str(newest.get("note") or newest.get("reason") or "").split())
    return note[:_LONGEST_WORDS] or None


def _time_of_event(event: Mapping[str, Any]) -> str:
    """RFC 3339 texts of one zone sort like their times."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("eventTime"), event.get("deprecatedLastTimestamp"))
    return max((time for time in times if time), default="")
