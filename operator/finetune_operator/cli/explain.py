"""`finetune explain`: what happens with a job or an endpoint, what it waits for, and what would release it."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.cli.columns import resource_of
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.explain_endpoint import explain_endpoint
from finetune_operator.cli.explain_job import explain_job
from finetune_operator.cli.target import Target, open_target, shell_of


async def run(options: argparse.Namespace) -> int:
    """Print the explanation."""
    resource = resource_of(options.kind)
    now = datetime.now(UTC)
    async with open_target(options) as target:
        shell = shell_of(options, target=target)
        if resource.kind == "ModelEndpoint":
            found = await target.read(kind="ModelEndpoint", name=options.name)
            print(explain_endpoint(ModelEndpoint.from_object(found), now=now, shell=shell).text())
        elif resource.kind == "FineTuneJob":
            job = FineTuneJob.from_object(await target.read(kind="FineTuneJob", name=options.name))
            endpoint = await _endpoint_of(job, target=target)
            print(explain_job(job, endpoint=endpoint, now=now, shell=shell).text())
        else:
            raise CommandError(
                f"a version waits for nothing; finetune describe version {options.name} shows it, and explain tells of"
                " the job or the endpoint"
            )
    return ExitStatus.DONE


async def _endpoint_of(job: FineTuneJob, *, target: Target) -> ModelEndpoint | None:
    if job.spec.endpoint_ref is None:
        return None
    found = await target.cluster.get(
        kind="ModelEndpoint", namespace=job.metadata.namespace, name=job.spec.endpoint_ref.name
    )
    return ModelEndpoint.from_object(found) if found is not None else None
