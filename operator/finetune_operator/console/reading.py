"""Objects, and what else a page shows, with the rights of whoever looks: from a cluster, or from the local folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune_api.crd import RESOURCES, ResourceKind
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_api.training_log import FILE_NAME, TrainingPoint, read_training_log
from finetune_operator.cli.snapshot import Snapshot
from finetune_operator.cli.target import Shell, Target
from finetune_operator.console.views import Page, endpoint_page, job_page, overview, path_of, version_page
from finetune_operator.core.ports import Manifest, UnavailableError
from finetune_operator.local.home import DEFAULT_HOME, LocalHome

MOST_ANSWERS = 50
_LARGEST_FILE = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Held-out examples to which both models gave different answers."""

    shown: Sequence[Mapping[str, Any]]
    """Lines of examples.jsonl, the first `MOST_ANSWERS` of them."""
    differ: int
    examples: int


async def read_overview(target: Target, *, namespace: str, now: datetime) -> Page:
    """All objects of a namespace; "": of all that the user may see."""
    found: dict[ResourceKind, list[Manifest] | str] = {}
    for resource in RESOURCES:
        try:
            found[resource.kind] = await target.cluster.list(kind=resource.kind, namespace=namespace or None)
        except UnavailableError as error:
            found[resource.kind] = str(error)
    return overview(found, namespace=namespace, now=now)


async def read_page(target: Target, *, kind: ResourceKind, name: str, now: datetime, acts: bool) -> Page:
    """The page of an object. Raises CommandError where there is none, UnavailableError."""
    raw = await target.read(kind=kind, name=name)
    shell = Shell(namespace=target.namespace, flags=_flags(target), local=target.home is not None)
    match kind:
        case "FineTuneJob":
            job = FineTuneJob.from_object(raw)
            snapshot = Snapshot.newest(job, reports=target.reports(), now=now)
            events = await _events(target, raw=raw)
            pages = _pages(target, kind=kind, name=name, uri=report_uri(raw))
            return job_page(
                job, snapshot=snapshot, curve=_curve(target, job=job), events=events, shell=shell, pages=pages
            )
        case "ModelVersion":
            pages = _pages(target, kind=kind, name=name, uri=report_uri(raw))
            return version_page(ModelVersion.model_validate(raw), now=now, pages=pages)
        case "ModelEndpoint":
            made = await target.cluster.list(kind="FineTuneJob", namespace=target.namespace)
            return endpoint_page(
                ModelEndpoint.from_object(raw),
                jobs=[FineTuneJob.from_object(each) for each in made],
                events=await _events(target, raw=raw),
                now=now,
                shell=shell,
                acts=acts,
            )


def report_uri(raw: Manifest) -> str:
    """Where the report of a job or a version is; "" where there is none (yet)."""
    part = raw["spec"] if raw["kind"] == "ModelVersion" else raw.get("status") or {}
    return (part.get("evaluation") or {}).get("report") or ""


def report_path(target: Target, *, uri: str) -> Path | None:
    """The report's file, None where it is not on this machine."""
    path = target.home.path_of(uri) if target.home is not None and uri else None
    return path if path is not None and path.name == "report.html" and path.is_file() else None


def read_answers(report: Path) -> Answers:
    """What both models said, from beside the report."""
    documents = list(_documents(report.with_name("examples.jsonl")))
    differ = [each for each in documents if each["candidate"].get("answer") != each["baseline"].get("answer")]
    return Answers(shown=differ[:MOST_ANSWERS], differ=len(differ), examples=len(documents))


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict) and {"prompt", "candidate", "baseline"} <= document.keys():
                yield document


def _pages(target: Target, *, kind: ResourceKind, name: str, uri: str) -> dict[str, str]:
    if report_path(target, uri=uri) is None:
        return {}
    page = path_of(kind, namespace=target.namespace, name=name)
    return {"The evaluation's report": f"{page}/report", "Answers side by side": f"{page}/answers"}


def _curve(target: Target, *, job: FineTuneJob) -> list[TrainingPoint]:
    run = (job.status.plan or {}).get("run") or ""
    folder = target.home.path_of(str(run)) if target.home is not None else None
    if folder is None:
        return []
    try:
        return read_training_log((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return []


async def _events(target: Target, *, raw: Manifest) -> Sequence[Manifest]:
    """What was said about the object; nothing where the user may not read events."""
    try:
        return await target.cluster.events_about(namespace=target.namespace, uid=raw["metadata"]["uid"])
    except UnavailableError:
        return ()


def _flags(target: Target) -> tuple[str, ...]:
    """What tells the command line to look here."""
    if target.home is None:
        return ("-n", target.namespace)
    here = target.home == LocalHome.at(DEFAULT_HOME)
    return (*(("--local",) if here else ("--home", str(target.home.root))), "-n", target.namespace)
