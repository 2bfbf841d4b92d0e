"""What is going on with a run, in plain words. Pure: the objects in, sentences out."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.cli import words
from finetune_operator.cli.explain_endpoint import explain_endpoint
from finetune_operator.cli.explanation import Explanation, Release, Shell
from finetune_operator.cli.snapshot import Snapshot

_ROLLOUT_PHASES = ("Shadowing", "Canary", "AwaitingApproval", "Promoting", "Guarding", "Paused", "RollingBack")
_WORK = {"Preparing": "Prepare", "Training": "Train", "Evaluating": "Evaluate"}


def explain_job(job: FineTuneJob, *, endpoint: ModelEndpoint | None, now: datetime, shell: Shell) -> Explanation:
    """What happens, how far it is, what it waits for, and what would release it.

    `endpoint`: the one that the job names; None where it names none, or where there is none.
    """
    phase = job.status.phase or "Pending"
    if job.status.observed_generation is None:
        explanation = _unseen(job, shell=shell)
    elif phase in TERMINAL_PHASES:
        explanation = _ended(job, endpoint=endpoint, shell=shell)
    elif phase == "Suspended":
        explanation = _suspended(job, shell=shell)
    elif endpoint is not None and job.status.rollout is not None:
        explanation = _rolled_out(job, endpoint=endpoint, now=now, shell=shell)
    elif phase in _WORK:
        explanation = _working(job, now=now, shell=shell)
    else:
        explanation = _waiting(job)
    return replace(explanation, headline=f"FineTuneJob {job.metadata.name} ({phase})")


def _unseen(job: FineTuneJob, *, shell: Shell) -> Explanation:
    if shell.local:
        again = Release(
            command=shell.finetune("run", "-f", "FILE"), effect=f"runs {job.metadata.name} from its manifest"
        )
        return Explanation(now=("nothing has worked on it yet",), waits_for=("`finetune run`",), release=(again,))
    doctor = Release(command=shell.finetune("doctor"), effect="says whether the operator runs, and what it lacks")
    waits = ("the operator: it looks within a second where it runs and watches this namespace",)
    return Explanation(now=("no operator has looked at it yet",), waits_for=waits, release=(doctor,))


# -- under way --------------------------------------------------------------------------------------------------------


def _waiting(job: FineTuneJob) -> Explanation:
    """Pending or Queued: the operator's own message says for what."""
    ready = job.status.condition("Ready")
    reason = ready.reason if ready is not None else ""
    message = job.status.message or "the operator's next look: within seconds"
    stalled = job.status.condition("Stalled")
    who: tuple[str, ...] = ()
    if stalled is not None and stalled.status == "True":
        who = ("this is for whoever runs the operator",)
    elif job.status.phase == "Queued":
        who = ("quota: whoever runs the queue can give more, or wait for other runs to end",)
    now = f"no pod of it runs ({reason})" if reason else "no pod of it runs"
    return Explanation(now=(now,), waits_for=(message, *who))


def _working(job: FineTuneJob, *, now: datetime, shell: Shell) -> Explanation:
    status = job.status
    stage = _WORK[status.phase or "Training"]
    snapshot = Snapshot.of(job=job, now=now, trainer=status.trainer_status)
    view = next(each for each in snapshot.stages if each.name == stage)
    doing = f"{stage} {view.state.lower()}" + (f", attempt {view.attempt}" if view.attempt > 1 else "")
    doing += f", for {words.seconds(view.seconds)} so far" if view.seconds is not None else ""
    lines = [f"{doing}: {status.message}" if status.message else doing]
    if status.restarts is not None and status.restarts.last is not None and view.attempt > 1:
        lines.append(f"tried again: {status.restarts.last.message or status.restarts.last.reason}")
    left = snapshot.remaining_seconds if stage == "Train" else None
    ends = f"{stage} to end" + (f": about {words.seconds(left)} more" if left is not None else "")
    last = f"; its newest checkpoint is step {status.checkpoint.step}" if status.checkpoint and stage == "Train" else ""
    following = {"Prepare": "Train", "Train": "Evaluate", "Evaluate": "the verdict"}[stage]
    return Explanation(
        now=tuple(lines),
        samples=(snapshot.training_words + last,) if stage == "Train" and snapshot.training_words else (),
        waits_for=(ends,),
        by_itself=(f"then: {following}",),
        release=(
            Release(
                command=shell.finetune("logs", job.metadata.name, "-f", "--stage", stage),
                effect="shows what its containers say",
            ),
        ),
    )


def _suspended(job: FineTuneJob, *, shell: Shell) -> Explanation:
    checkpoint = job.status.checkpoint
    where = f" at step {checkpoint.step}" if checkpoint is not None else ""
    if shell.local:
        command, effect = shell.finetune("run", "-f", "FILE"), "goes on, with spec.suspend false in the file"
    else:
        patch = '{"spec":{"suspend":false}}'
        command = shell.kubectl("patch", "finetunejob", job.metadata.name, "--type=merge", "-p", patch)
        effect = "goes on from the newest checkpoint"
    return Explanation(
        now=(f"stopped{where}: spec.suspend is true",),
        waits_for=("spec.suspend to be false",),
        release=(Release(command=command, effect=effect),),
    )


def _rolled_out(job: FineTuneJob, *, endpoint: ModelEndpoint, now: datetime, shell: Shell) -> Explanation:
    """The endpoint decides from here on: its explanation is the job's."""
    version = job.status.model_version.name if job.status.model_version is not None else "its version"
    found = explain_endpoint(endpoint, now=now, shell=shell)
    if job.status.phase in _ROLLOUT_PHASES:
        return replace(found, now=(f"{version} is proven; {endpoint.metadata.name} rolls it out", *found.now))
    return replace(
        found,
        now=(f"{version} is proven and waits for its turn at {endpoint.metadata.name}", *found.now),
        waits_for=found.waits_for or (job.status.message or "the endpoint's next look: within seconds",),
    )


# -- over -------------------------------------------------------------------------------------------------------------


def _ended(job: FineTuneJob, *, endpoint: ModelEndpoint | None, shell: Shell) -> Explanation:
    status, name = job.status, job.metadata.name
    message = status.message or f"it is {status.phase}"
    report = Release(
        command=shell.finetune("report", name), effect="prints the comparison, and where its HTML report is"
    )
    rows = status.evaluation.results if status.evaluation is not None else []
    samples = tuple(words.comparison_line(row) for row in rows if not row.report)
    outcome = Explanation(now=(message,), samples=samples, release=(report,) if rows else ())
    match status.phase:
        case "Succeeded":
            return replace(outcome, by_itself=_made(job, endpoint=endpoint))
        case "Rejected" if status.rollout is None:
            needs = [row.needed_n for row in rows if row.needed_n and row.verdict == "Inconclusive"]
            more = (f"about {max(needs)} held-out examples would decide it, in a new job",) if needs else ()
            return replace(outcome, notes=(*more, "a run is a record: a changed one needs another metadata.name"))
        case "Failed":
            logs = Release(command=shell.finetune("logs", name), effect="shows what the containers said last")
            stages = (logs,) if any(stage.child for stage in status.stages) else ()
            return replace(
                outcome,
                release=(*stages, *outcome.release),
                notes=("a run is a record: to try again, create it under another metadata.name",),
            )
        case _:
            versions = Release(
                command=shell.finetune(
                    "describe", "endpoint", job.spec.endpoint_ref.name if job.spec.endpoint_ref else ""
                ),
                effect="shows what became of each version, and why",
            )
            note = "the version is not tried again; a new run makes a new one"
            return replace(outcome, release=(*outcome.release, versions), notes=(note,))


def _made(job: FineTuneJob, *, endpoint: ModelEndpoint | None) -> tuple[str, ...]:
    version = job.status.model_version
    if version is None:
        return ()
    if endpoint is None:
        return (f"ModelVersion {version.name} stays; no endpoint serves it by itself (spec.endpointRef is not set)",)
    stable = endpoint.status.stable
    if stable is not None and stable.uid == version.uid:
        return (f"{endpoint.metadata.name} serves {version.name} until a better one is proven",)
    serves = f"{endpoint.metadata.name} serves {stable.name} now" if stable is not None else ""
    return (serves,) if serves else ()
