"""`finetune describe`: all about one object, in plain words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from finetune_api.crd import ResourceKind
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_api.shared_fields import MetricResult
from finetune_operator.cli import sections, words
from finetune_operator.cli.columns import resource_of
from finetune_operator.cli.describe_endpoint import describe_endpoint
from finetune_operator.cli.errors import ExitStatus
from finetune_operator.cli.sections import Part
from finetune_operator.cli.target import Target, open_target
from finetune_operator.core.ports import Manifest, UnavailableError


async def run(options: argparse.Namespace) -> int:
    """Print the description."""
    kind = resource_of(options.kind).kind
    async with open_target(options) as target:
        found = await target.read(kind=kind, name=options.name)
        print(sections.text_of(await _described(found, kind=kind, target=target, now=datetime.now(UTC))))
    return ExitStatus.DONE


async def _described(raw: Manifest, *, kind: ResourceKind, target: Target, now: datetime) -> list[Part]:
    match kind:
        case "FineTuneJob":
            return describe_job(FineTuneJob.from_object(raw), events=await _events_of(raw, target=target), now=now)
        case "ModelVersion":
            return describe_version(ModelVersion.model_validate(raw), now=now)
        case "ModelEndpoint":
            return describe_endpoint(
                ModelEndpoint.from_object(raw), events=await _events_of(raw, target=target), now=now
            )


async def _events_of(manifest: Manifest, *, target: Target) -> list[Manifest]:
    """What was said about the object; nothing where the user may read the object and not the events."""
    uid = manifest["metadata"]["uid"]
    try:
        events = await target.cluster.list(kind="Event", namespace=target.namespace)
    except UnavailableError as error:
        print(f"note: events are left out: {error}", file=sys.stderr)
        return []
    return [event for event in events if (event.get("regarding") or {}).get("uid") == uid]


def describe_job(job: FineTuneJob, *, events: Iterable[Manifest], now: datetime) -> list[Part]:
    """A job in parts."""
    spec, status = job.spec, job.status
    parts = [
        Part(
            fields={
                "Name": job.metadata.name,
                "Namespace": job.metadata.namespace,
                "Created": sections.when(job.metadata.creation_timestamp, now=now),
                "Phase": status.phase or "Pending",
                "Message": status.message or "",
                **sections.next_(status.next, now=now),
                "Model": f"{spec.model.uri} ({spec.model.task})",
                "Method": words.method(spec.method.to_dict()),
                "Strategy": words.sharing(status),
                "Data": ", ".join(f"{source.name} ({source.uri})" for source in spec.data.sources),
                "Artifacts": spec.artifacts.uri,
                "Version": status.model_version.name if status.model_version else "",
                "Endpoint": _rollout(job),
                "Report": (status.evaluation.report or "") if status.evaluation else "",
                "Checkpoint": f"step {status.checkpoint.step} ({status.checkpoint.uri})" if status.checkpoint else "",
                "Restarts": _restarts(job),
            }
        )
    ]
    if status.stages:
        rows = [
            (
                stage.name,
                stage.state,
                str(stage.attempt),
                sections.duration(stage.start_time, stage.completion_time, now=now),
                words.stage_result(stage.result),
            )
            for stage in status.stages
        ]
        parts.append(Part(title="Stages", header=("NAME", "STATE", "ATTEMPT", "TIME", "RESULT"), rows=rows))
    if status.phase == "Training" and status.trainer_status is not None:
        metrics = {metric.name: metric.value for metric in status.trainer_status.metrics or ()}
        parts.append(Part(title="Training", fields=metrics))
    if status.evaluation is not None:
        results = status.evaluation.results
        parts.append(_comparison(f"Evaluation ({status.evaluation.verdict})", results, lines=words.reasons(results)))
    return [*parts, sections.conditions(status.conditions, now=now), sections.events(events, now=now)]


def describe_version(version: ModelVersion, *, now: datetime) -> list[Part]:
    """A version in parts."""
    spec = version.spec
    rows = spec.data.rows
    parent = f", continued from {spec.lineage.parent.name}" if spec.lineage.parent else ""
    fields = {
        "Name": version.metadata.name,
        "Namespace": version.metadata.namespace,
        "Created": sections.when(version.metadata.creation_timestamp, now=now),
        "Endpoint": spec.endpoint_ref.name if spec.endpoint_ref else "",
        "Verdict": spec.evaluation.verdict,
        "Artifact": f"{spec.artifact.uri} ({spec.artifact.format}, {words.size(spec.artifact.size_bytes)})",
        "Digest": spec.artifact.digest,
        "Base": spec.base.uri + (f" at {spec.base.revision}" if spec.base.revision else ""),
        "Licence": spec.base.licence or "unknown",
        "Task": spec.task,
        "Method": words.method(spec.method),
        "Data": f"{spec.data.digest} (train {rows.train}, validation {rows.validation}, test {rows.test})",
        "Made by": f"job {spec.lineage.job.name}{parent}",
        "Report": spec.evaluation.report or "",
    }
    return [Part(fields=fields), _comparison(f"Compared with {spec.baseline.name}", spec.evaluation.results)]


def _comparison(title: str, results: Sequence[MetricResult], *, lines: Sequence[str] = ()) -> Part:
    return Part(title=title, header=words.METRIC_HEADER, rows=words.metric_rows(results), lines=lines)


def _rollout(job: FineTuneJob) -> str:
    endpoint, rollout = job.spec.endpoint_ref, job.status.rollout
    if endpoint is None or rollout is None:
        return endpoint.name if endpoint is not None else ""
    weight = f", {rollout.weight:g} % of the requests" if rollout.weight is not None else ""
    return f"{endpoint.name} ({rollout.phase}{weight})"


def _restarts(job: FineTuneJob) -> str:
    restarts = job.status.restarts
    if restarts is None or not (restarts.failures or restarts.preemptions):
        return ""
    last = f"; the last: {restarts.last.message or restarts.last.reason}" if restarts.last else ""
    return (
        f"{words.count(restarts.failures, 'failure')}, {words.count(restarts.preemptions, 'interruption')}, "
        f"{words.count(restarts.steps_lost, 'step')} done again{last}"
    )
