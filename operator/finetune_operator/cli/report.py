"""`finetune report`: the comparison as a table, and the HTML report."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from finetune_api.finetunejob import FineTuneJob
from finetune_operator.cli import words
from finetune_operator.cli.errors import EXIT_STATUS_OF_PHASE, CommandError, ExitStatus
from finetune_operator.cli.tables import table
from finetune_operator.cli.target import Target, open_target


async def run(options: argparse.Namespace) -> int:
    """Print the comparison; DONE for any verdict."""
    async with open_target(options) as target:
        job = FineTuneJob.from_object(await target.read(kind="FineTuneJob", name=options.name))
        print(comparison(job))
        where = _report(job, target)
    print(f"\nReport: {where}")
    if options.open:
        if not isinstance(where, Path):
            raise CommandError(f"{where} is not on this machine; copy it here and open it")
        if not webbrowser.open(where.as_uri()):
            raise CommandError(f"no browser was found; open {where} yourself", status=ExitStatus.FAILED)
    return ExitStatus.DONE


def comparison(job: FineTuneJob) -> str:
    """The table of a job that was evaluated. Raises CommandError for one that was not."""
    status = job.status
    if status.evaluation is None:
        more = f" ({status.message})" if status.message else ""
        raise CommandError(
            f"{job.metadata.name} has not been evaluated: {status.phase or 'Pending'}{more}",
            status=EXIT_STATUS_OF_PHASE.get(status.phase or "", ExitStatus.NOT_ENDED),
        )
    rows = status.evaluation.results
    lines = [f"{job.metadata.name}: {status.evaluation.verdict} against {baseline_of(job)}"]
    lines += [f"Trained under {strategy}" for strategy in [words.sharing(status)] if strategy] + [""]
    lines.append(table(header=words.METRIC_HEADER, rows=words.metric_rows(rows)))
    lines += [f"\n{reason}" for reason in words.reasons(rows)]
    return "\n".join(lines)


def baseline_of(job: FineTuneJob) -> str:
    """What the model was compared with, in words."""
    plan = job.status.plan or {}
    version = plan.get("baseline") or (plan.get("model") or {}).get("parent")
    return f"version {version['name']}" if version else "the base model"


def _report(job: FineTuneJob, target: Target) -> str | Path:
    uri = (job.status.evaluation.report or "") if job.status.evaluation else ""
    path = target.home.path_of(uri) if target.home else None
    return path if path is not None and path.exists() else uri
