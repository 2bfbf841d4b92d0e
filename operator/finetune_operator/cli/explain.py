"""`finetune explain`: what happens with a job or an endpoint, what it waits for, and what would release it.

All of it is in the object's status (status.next above all); here it is put into words and commands for this shell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob
from finetune_api.modelendpoint import ROLLBACK, AnalysisRow, ModelEndpoint
from finetune_api.shared_fields import NextStatus, Release
from finetune_operator.cli import words
from finetune_operator.cli.columns import resource_of
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.sections import INDENT, Part, text_of, waits_for
from finetune_operator.cli.snapshot import Snapshot
from finetune_operator.cli.target import Shell, open_target, shell_of
from finetune_operator.core.reasons import Reason
from finetune_operator.job.retry import useless

_VERBS = {"Approve": "approve", "Reject": "reject", "RollBack": "rollback", "Resume": "resume"}
_STAGES = {"Preparing": "Prepare", "Training": "Train", "Evaluating": "Evaluate"}
_RIGHTS = "approve, reject and rollback need the verb approve on modelendpoints (ClusterRole finetune-approve)"
_RECORD = "a run is a record: a changed one needs another metadata.name"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What is said of an object, in sentences under headings."""

    headline: str
    now: Sequence[str]
    waits: Sequence[str]
    commands: Sequence[tuple[str, str]]
    """What can be typed, and what comes of it."""
    so_far: Sequence[str] = ()
    then: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def parts(self) -> list[Part]:
        """All but the commands."""
        said = {"Now": self.now, "So far": self.so_far, "Waits for": self.waits, "Then": self.then}
        return [Part(title=title, lines=lines) for title, lines in said.items()]

    @property
    def text(self) -> str:
        """For a terminal."""
        commands = [f"{command}\n{INDENT * 3}{effect}" for command, effect in self.commands]
        last = [Part(title="What you can do", lines=commands), Part(title="Note", lines=self.notes)]
        return f"{self.headline}\n\n{text_of([*self.parts, *last])}"


async def run(options: argparse.Namespace) -> int:
    """Print the explanation."""
    resource = resource_of(options.kind)
    now = datetime.now(UTC)
    async with open_target(options) as target:
        shell = shell_of(options, target=target)
        if resource.kind == "ModelEndpoint":
            endpoint = ModelEndpoint.from_object(await target.read(kind="ModelEndpoint", name=options.name))
            made = await target.cluster.list(kind="FineTuneJob", namespace=target.namespace)
            jobs = [FineTuneJob.from_object(each) for each in made]
            print(explain_endpoint(endpoint, now=now, shell=shell, jobs=jobs).text)
        elif resource.kind == "FineTuneJob":
            job = await target.read(kind="FineTuneJob", name=options.name)
            print(explain_job(FineTuneJob.from_object(job), now=now, shell=shell).text)
        else:
            raise CommandError(
                f"a version waits for nothing; finetune describe version {options.name} shows it, and explain tells of"
                " the job or the endpoint"
            )
    return ExitStatus.DONE


def explain_endpoint(
    endpoint: ModelEndpoint, *, now: datetime, shell: Shell, jobs: Sequence[FineTuneJob] = ()
) -> Explanation:
    """An endpoint, in plain words. `jobs`: all of its namespace, of which some may make its first version."""
    status, name = endpoint.status, endpoint.metadata.name
    serves = f"serves {status.stable.name}" if status.stable is not None else "serves no version yet"
    tries = f" and tries {status.candidate.name}" if status.candidate is not None else ""
    headline = f"ModelEndpoint {name} {serves}{tries} ({status.phase or 'not looked at yet'})"
    if status.observed_generation is None:
        return Explanation(headline=headline, **_unseen(shell, works=shell.finetune("up", "-f", "FILE")))
    found = status.next or NextStatus()
    waiting = [each.name for each in (status.candidate, *status.all_held) if each is not None]
    version = waiting[0] if len(waiting) > 1 else ""
    commands = [typed for each in found.release if (typed := _typed(each, shell=shell, endpoint=name, version=version))]
    notes = [each.message for each in status.conditions if _is_news(each.type, each.status)]
    if status.observed_generation < (endpoint.metadata.generation or 0):
        notes.append("the operator has not seen the newest change of the spec yet")
    served = (status.stable, status.candidate)
    notes += [f"{each.name} is not proven: {each.unproven}" for each in served if each is not None and each.unproven]
    last = status.versions[-1] if status.versions else None
    if status.step is None and last is not None and last.outcome in ("Rejected", "RolledBack"):
        notes.append(
            f"the last one tried, {last.name}: {last.outcome} by {last.by} at {last.time:%F %T} UTC: {last.reason}"
        )
    if not shell.local and {each.action for each in found.release} - {"Resume", "Unpin", "Withdraw"}:
        notes.append(_RIGHTS)
    said, so_far = [status.message or "nothing is known"], list(_so_far(endpoint, now=now))
    if status.stable is None:
        said.append("clients get 503 until a version serves")
    if status.stable is None and status.candidate is None:
        own = [job for job in jobs if job.spec.endpoint_ref and job.spec.endpoint_ref.name == name]
        so_far += [_progress(job) for job in own] or [f"no job names {name} as its endpointRef"]
        commands += [_follow(job, shell=shell) for job in own] or [_first_job(name, shell=shell)]
    return Explanation(
        headline=headline,
        now=said,
        so_far=so_far,
        waits=waits_for(status.next, now=now),
        then=found.then,
        commands=commands,
        notes=notes,
    )


def explain_job(job: FineTuneJob, *, now: datetime, shell: Shell) -> Explanation:
    """A job, in plain words. While its version is rolled out, what the endpoint waits for is what the job waits for."""
    status, name = job.status, job.metadata.name
    headline = f"FineTuneJob {name} ({status.phase or 'Pending'})"
    if status.observed_generation is None:
        return Explanation(headline=headline, **_unseen(shell, works=shell.finetune("run", "-f", "FILE")))
    found = status.next or NextStatus()
    endpoint = status.rollout.endpoint if status.rollout is not None else ""
    commands = [typed for each in found.release if (typed := _typed(each, shell=shell, endpoint=endpoint, job=name))]
    if endpoint:
        commands.append((shell.finetune("explain", "endpoint", endpoint), "shows the endpoint, and what was measured"))
    rows = status.evaluation.results if status.evaluation is not None else []
    if status.phase in _STAGES:
        logs = shell.finetune("logs", name, "-f", "--stage", _STAGES[status.phase])
        commands.append((logs, "shows what its containers say"))
    elif status.phase == "Failed" and any(stage.child for stage in status.stages):
        commands.append((shell.finetune("logs", name), "shows what the containers said last"))
    if status.phase == "Failed" and not useless(job):
        again = "goes on where it failed, once what was to blame is mended; what is complete is kept"
        commands.append((shell.finetune("retry", "job", name), again))
    if rows:
        commands.append((shell.finetune("report", name), "prints the comparison, and where its HTML report is"))
    said, ended = [status.message or "nothing is known"], status.phase in TERMINAL_PHASES
    if status.restarts is not None and status.restarts.last is not None and not ended:
        said.append(f"tried again: {status.restarts.last.message or status.restarts.last.reason}")
    training = Snapshot.of(job=job, now=now, trainer=status.trainer_status).training_words
    saved = f"the newest checkpoint is step {status.checkpoint.step}" if status.checkpoint and not ended else ""
    compared = [words.comparison_line(row) for row in rows if not row.report]
    needs = [row.needed_n for row in rows if row.needed_n and row.verdict == "Inconclusive"]
    decides = [f"about {max(needs)} held-out examples would decide it, in a new job"] if needs else []
    void = [each.message for each in status.conditions if each.type == Reason.REQUEST_VOID]
    return Explanation(
        headline=headline,
        now=said,
        so_far=[line for line in (training, saved, *compared) if line],
        waits=["nothing"] if ended else waits_for(status.next, now=now),
        then=found.then,
        commands=commands,
        notes=[*void, *decides, _RECORD] if status.phase in ("Failed", "Rejected") else void,
    )


def _progress(job: FineTuneJob) -> str:
    return f"job {job.metadata.name}: {job.status.phase or 'Pending'}: {job.status.message or 'not looked at yet'}"


def _follow(job: FineTuneJob, *, shell: Shell) -> tuple[str, str]:
    name = job.metadata.name
    return shell.finetune("explain", "job", name), f"says what {name} waits for, or why its version may not serve"


def _first_job(endpoint: str, *, shell: Shell) -> tuple[str, str]:
    command = shell.finetune("run", "-f", "FILE") if shell.local else shell.kubectl("apply", "-f", "FILE")
    return command, f"with a FineTuneJob whose spec.endpointRef.name is {endpoint}: what it proves serves"


def _unseen(shell: Shell, *, works: str) -> dict[str, Any]:
    if shell.local:
        waits, command = f"`{works}` to run: nothing works on it in this folder without", (works, "works on it")
    else:
        waits = "the operator: it looks within a second where it runs and watches this namespace"
        command = (shell.finetune("doctor"), "says whether the operator runs, and what it lacks")
    return {"now": ["no operator has looked at it yet"], "waits": [waits], "commands": [command]}


def _typed(
    release: Release, *, shell: Shell, endpoint: str, job: str = "", version: str = ""
) -> tuple[str, str] | None:
    """The command that does it, and what comes of it; None where there is none in local mode. `version`: the one that
    it is about, where it has to be named."""
    match release.action:
        case "Approve" | "Reject" if version:
            return shell.finetune(_VERBS[release.action], endpoint, "--version", version), release.effect
        case "Approve" | "Reject" | "RollBack" | "Resume":
            return shell.finetune(_VERBS[release.action], endpoint), release.effect
        case "Unpin" if shell.local:
            return shell.finetune("up", "-f", "FILE"), f'with spec.version "" in it, {release.effect}'
        case "Unpin":
            patch = ("patch", "modelendpoint", endpoint, "--type=merge", "-p", '{"spec":{"version":""}}')
            return shell.kubectl(*patch), release.effect
        case "Unsuspend" if shell.local:
            return shell.finetune("run", "-f", "FILE"), f"unless it says suspend: true, {release.effect}"
        case "Unsuspend":
            patch = ("patch", "finetunejob", job, "--type=merge", "-p", '{"spec":{"suspend":false}}')
            return shell.kubectl(*patch), release.effect
        case "Withdraw" if shell.local:
            return shell.finetune("up", "-f", "FILE"), f'with the annotation {ROLLBACK} "" in it, {release.effect}'
        case "Withdraw":
            return shell.kubectl("annotate", "modelendpoint", endpoint, f"{ROLLBACK}-"), release.effect


def _is_news(type_: str, status: str) -> bool:
    return status == ("False" if type_ == "Available" else "True") and type_ in (
        "Available",
        Reason.REQUEST_VOID,
        Reason.CONTESTED,
    )


def _so_far(endpoint: ModelEndpoint, *, now: datetime) -> Iterator[str]:
    """How far the gateways and the samples are."""
    status = endpoint.status
    routes, step = status.routes, status.step
    if routes is not None and routes.acknowledged < routes.gateways:
        gateways = words.count(routes.gateways, "gateway")
        yield f"{routes.acknowledged} of {gateways} follow the newest routes (epoch {routes.epoch})"
    yield from (_row(row) for row in status.analysis)
    if step is not None and step.samples < step.needed:
        seconds = ((status.analysis_time or now) - step.start_time).total_seconds()
        pace = at_this_rate(missing=step.needed - step.samples, seen=step.samples, seconds=seconds)
        yield f"{step.samples} of {step.needed} of each metric{pace}"


def _row(row: AnalysisRow) -> str:
    """A metric: how many samples, what was seen, where the difference lies, and the verdict."""
    parts = [f"{row.metric}: {row.samples} samples"]
    if row.candidate is not None and row.baseline is not None:
        parts.append(f"bad ones {words.number(row.candidate)} against {words.number(row.baseline)} of stable")
    if row.low is not None and row.high is not None:
        parts.append(f"difference {words.interval(row.low, row.high)}")
    return f"{', '.join(parts)}: {row.verdict}" + (f" ({row.reason})" if row.reason else "")


def at_this_rate(*, missing: int, seen: int, seconds: float) -> str:
    """How long `missing` more samples take if they come as the `seen` ones did; "" where that is not known."""
    if missing <= 0 or seen <= 0 or seconds <= 0:
        return ""
    rate = seen / seconds
    pace = f"{rate:.3g} a second" if rate >= 1 else f"{60 * rate:.3g} a minute"
    return f"; at the rate so far ({pace}) the rest takes about {words.seconds(missing / rate)}"
