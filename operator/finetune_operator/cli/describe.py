"""`finetune describe`: all about one object, in plain words."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime

from finetune_api.crd import ResourceKind
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_operator.cli import sections, words
from finetune_operator.cli.columns import resource_of
from finetune_operator.cli.describe_endpoint import describe_endpoint
from finetune_operator.cli.errors import ExitStatus
from finetune_operator.cli.sections import INDENT
from finetune_operator.cli.tables import table
from finetune_operator.cli.target import Target, open_target
from finetune_operator.core.ports import Manifest, UnavailableError


async def run(options: argparse.Namespace) -> int:
    """Print the description."""
    kind = resource_of(options.kind).kind
    async with open_target(options) as target:
        found = await target.read(kind=kind, name=options.name)
        print(await _described(found, kind=kind, target=target, now=datetime.now(UTC)))
    return ExitStatus.DONE


async def _described(raw: Manifest, *, kind: ResourceKind, target: Target, now: datetime) -> str:
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


def describe_job(job: FineTuneJob, *, events: list[Manifest], now: datetime) -> str:
    """A job as text."""
    spec, status = job.spec, job.status
    parts = [
        sections.fields(
            {
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
        header = ("NAME", "STATE", "ATTEMPT", "TIME", "RESULT")
        parts.append("Stages:\n" + table(header=header, rows=rows, indent=INDENT))
    if status.phase == "Training" and status.trainer_status is not None:
        metrics = {metric.name: metric.value for metric in status.trainer_status.metrics or ()}
        parts.append("Training:\n" + sections.fields(metrics, indent=INDENT))
    if status.evaluation is not None:
        parts.append(_comparison(job))
    parts.append(sections.conditions(status.conditions, now=now))
    parts.append(sections.events(events, now=now))
    return "\n\n".join(part for part in parts if part)


def describe_version(version: ModelVersion, *, now: datetime) -> str:
    """A version as text."""
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
    comparison = words.metric_table(spec.evaluation.results, baseline=spec.baseline.name, indent=INDENT)
    return f"{sections.fields(fields)}\n\nCompared with {spec.baseline.name}:\n{comparison}"


def _comparison(job: FineTuneJob) -> str:
    evaluation = job.status.evaluation
    if evaluation is None:
        return ""
    lines = [
        f"Evaluation: {evaluation.verdict}",
        words.metric_table(evaluation.results, baseline="baseline", indent=INDENT),
        *(f"{INDENT}{reason}" for reason in words.reasons(evaluation.results)),
    ]
    return "\n".join(lines)


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
