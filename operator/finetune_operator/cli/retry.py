"""`finetune retry`: a run that failed is to go on, once what was to blame is mended."""

from __future__ import annotations

import argparse

from finetune_api.finetunejob import RETRY, FineTuneJob
from finetune_api.streams import tell
from finetune_operator.cli.columns import resource_of
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.target import open_target, shell_of
from finetune_operator.job.retry import end_of, retried, useless


async def run(options: argparse.Namespace) -> int:
    """Ask for it, and say what follows."""
    name = options.name
    if resource_of(options.kind).kind != "FineTuneJob":
        raise CommandError("only a job is tried again; finetune explain endpoint NAME says what an endpoint waits for")
    async with open_target(options) as target:
        job, shell = (
            FineTuneJob.from_object(await target.read(kind="FineTuneJob", name=name)),
            shell_of(options, target=target),
        )
        end = end_of(job)
        if not end:
            raise CommandError(f"{name} has not ended ({job.status.phase or 'Pending'}): there is nothing to try again")
        if why := useless(job):
            raise CommandError(f"{name} is not tried again: {why}")
        await target.annotate(kind="FineTuneJob", name=name, annotations={RETRY: end})
        works = target.home is None or target.home.is_in_use
        tell(f"{name}: {retried(job).message}")
        tell(
            f"how it goes: {shell.finetune('watch', 'job', name)}"
            if works
            else f"it goes on with: {shell.finetune('run', '-f', 'FILE')}"
        )
    return ExitStatus.DONE
