"""Gathers what `job.decide` needs to know about one job, with as few reads as that takes.

A job that runs costs two lists, side by side; the rest is read only when the decision hangs on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_operator.attempts.observed import Attempt, AttemptKey, ChildJob, bucket
from finetune_operator.attempts.restarts import Cause
from finetune_operator.attempts.verdicts import Broken, Waiting
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import ChildRef, ref_of
from finetune_operator.core.names import JOB_UID_LABEL
from finetune_operator.core.ownership import is_owned
from finetune_operator.core.ports import Cluster, Door, Kind, NotFoundError, ProgressSource, UnavailableError
from finetune_operator.core.reasons import Reason
from finetune_operator.job.begin import baseline_name
from finetune_operator.job.children import child_name, version_name
from finetune_operator.job.cleanup import removable
from finetune_operator.job.observed import Observed, ObservedClaim, recorded_jobs
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.resolve import claims_of, parent_name
from finetune_operator.job.stages import recorded_plan
from finetune_operator.job.step import judged

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
    ended = job.status.phase in TERMINAL_PHASES
    if job.status.plan is None and not ended:
        return await _with_references(cluster=cluster, observed=observed)
    attempts = await attempts_of(cluster=cluster, job=job)
    attachments = await _attachments(cluster=cluster, observed=observed, attempts=attempts)
    observed = replace(observed, attempts=attempts, attachments=attachments)
    if ended:
        return observed
    if job.status.evaluation is not None:
        names = [version_name(job=job, taken=taken) for taken in (False, True)]
        versions = await asyncio.gather(*(_version(cluster=cluster, job=job, name=name) for name in names))
        observed = replace(observed, versions=tuple(version for version in versions if version is not None))
        return replace(observed, endpoint=await _endpoint(cluster=cluster, job=job))
    return await _with_words(cluster=cluster, observed=observed)


async def _with_references(*, cluster: Cluster, observed: Observed) -> Observed:
    """What the job names and others made."""
    job = observed.job
    claims = await asyncio.gather(*(_claim(cluster=cluster, job=job, name=claim.name) for claim in claims_of(job.spec)))
    config_data = await _config_data(cluster=cluster, job=job)
    endpoint = await _endpoint(cluster=cluster, job=job)
    baseline = baseline_name(job, endpoint=endpoint)
    version = await _version(cluster=cluster, job=job, name=baseline) if baseline else None
    parent = parent_name(job.spec)
    found = await _version(cluster=cluster, job=job, name=parent) if parent else None
    return replace(
        observed,
        claims=tuple(claims),
        config_data=config_data,
        endpoint=endpoint,
        baseline=version,
        parent=found,
    )


async def _config_data(*, cluster: Cluster, job: FineTuneJob) -> Mapping[str, str] | None:
    reference = job.spec.compute.config_ref if job.spec.compute else None
    if reference is None:
        return None
    found = await cluster.get(kind="ConfigMap", namespace=job.metadata.namespace, name=reference.name)
    return None if found is None else found.get("data") or {}


async def _endpoint(*, cluster: Cluster, job: FineTuneJob) -> ModelEndpoint | None:
    """For what is in production, or for how the rollout goes."""
    if job.spec.endpoint_ref is None:
        return None
    name = job.spec.endpoint_ref.name
    found = await cluster.get(kind="ModelEndpoint", namespace=job.metadata.namespace, name=name)
    return ModelEndpoint.from_object(found) if found is not None else None


async def attempts_of(*, cluster: Cluster, job: FineTuneJob) -> dict[AttemptKey, Attempt]:
    """The job's own Jobs and their pods, as far as they exist. Raises UnavailableError."""
    namespace, labels = job.metadata.namespace, {JOB_UID_LABEL: job.metadata.uid}
    jobs, pods = await asyncio.gather(
        cluster.list(kind="Job", namespace=namespace, labels=labels),
        cluster.list(kind="Pod", namespace=namespace, labels=labels),
    )
    return bucket(
        jobs=jobs,
        pods=pods,
        owner_uid=job.metadata.uid,
        name_of=lambda key: child_name(job=job.metadata.name, stage=key[0], attempt=key[1]),
        recorded=recorded_jobs(job.status),
    )


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


async def _with_words(*, cluster: Cluster, observed: Observed) -> Observed:
    """Others' words on why a Job does not run, or who ended its pods. Not to get them is no error."""
    status, namespace = observed.job.status, observed.job.metadata.namespace
    stage = next((stage for stage in status.stages if stage.state != "Complete"), None)
    plan = recorded_plan(status)
    if stage is None or not isinstance(plan, ResolvedPlan):
        return observed
    attempt = observed.attempt(stage.name, stage.attempt)
    verdict, job = judged(observed, plan=plan, stage=stage), attempt.job
    if isinstance(verdict, Broken) and verdict.cause is Cause.POD_DELETED and job is not None:
        found = replace(attempt, ended_by_job=await _ended_by(job, cluster=cluster))
        return replace(observed, attempts={**observed.attempts, (stage.name, stage.attempt): found})
    if not isinstance(verdict, Waiting) or not verdict.about or job is None:
        return observed
    try:
        if verdict.reason == Reason.QUEUED:
            words = await _queue_message(cluster=cluster, job=job)
        elif verdict.reason == Reason.UNSCHEDULABLE:
            words = await _unbound(cluster=cluster, job=observed.job)
        else:
            words = newest_words(await cluster.events_about(namespace=namespace, uid=verdict.about))
    except (NotFoundError, UnavailableError):
        return observed
    return replace(observed, wait_words=words)


async def _ended_by(job: ChildJob, *, cluster: Cluster) -> frozenset[str]:
    """The pods that the Job ended because another one had failed; they may be gone before anybody looks."""
    try:
        events = await cluster.events_about(namespace=job.ref.namespace, uid=job.ref.uid)
    except (NotFoundError, UnavailableError):
        return frozenset()
    notes = (str(each.get("note")) for each in events if each.get("reason") == "SuccessfulDelete")
    return frozenset(note.rpartition(" ")[2] for note in notes)


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
    for name in (each.name for each in claims_of(job.spec)):
        claim = await cluster.get(kind="PersistentVolumeClaim", namespace=namespace, name=name)
        phase = ((claim or {}).get("status") or {}).get("phase", "")
        if claim is None:
            return f"there is no PersistentVolumeClaim {name} any more"
        if phase in ("Pending", "Lost"):
            why = newest_words(await cluster.events_about(namespace=namespace, uid=claim["metadata"].get("uid", "")))
            return ": ".join(each for each in (f"PersistentVolumeClaim {name} is {phase}", why) if each)
    return None


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
