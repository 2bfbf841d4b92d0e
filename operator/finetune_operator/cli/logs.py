"""`finetune logs`: what the containers of a job said, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.finetunejob import STAGES, TERMINAL_PHASES, FineTuneJob
from finetune_operator.attempts.pods import CONTAINER
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.target import Target, open_target
from finetune_operator.core.ports import NotFoundError
from finetune_operator.job.observe import attempts_of

_POLL_SECONDS = 0.5
_POD_NAME = re.compile(r"-(?P<stage>prepare|train|evaluate)-(?P<attempt>\d+)-(?P<index>\d+)-[0-9a-z]{5}")
_STAGE_NUMBERS = {stage.lower(): number for number, stage in enumerate(STAGES)}


@dataclass(frozen=True, kw_only=True, order=True)
class LogOf:
    """The log of one pod; the order is the one in which a run writes them."""

    stage: int
    attempt: int
    index: int
    pod: str

    @property
    def title(self) -> str:
        """Whose it is."""
        return f"{STAGES[self.stage]}, attempt {self.attempt}" + (f", rank {self.index}" if self.index else "")


async def run(options: argparse.Namespace) -> int:
    """Print the newest log that fits, or all from now on."""
    async with open_target(options) as target:
        job = await _job(target, options.name)
        found = await _fitting(target, job=job, options=options)
        if not found and not options.follow:
            raise CommandError(f"{options.name} has no such log: {job.status.phase or 'Pending'}")
        shown: set[LogOf] = set()
        log = found[-1] if found else None
        while True:
            if log is not None:
                shown.add(log)
                if options.follow:
                    print(f"==> {log.title} <==", file=sys.stderr, flush=True)
                await _print(target, job=job, log=log, follow=options.follow)
            if not options.follow:
                return ExitStatus.DONE
            ended = (await _job(target, options.name)).status.phase in TERMINAL_PHASES
            newer = [
                each for each in await _fitting(target, job=job, options=options) if not shown or each > max(shown)
            ]
            if not newer and ended:
                return ExitStatus.DONE
            if not newer:
                await asyncio.sleep(_POLL_SECONDS)
            log = newer[0] if newer else None


async def _job(target: Target, name: str) -> FineTuneJob:
    return FineTuneJob.from_object(await target.read(kind="FineTuneJob", name=name))


async def _fitting(target: Target, *, job: FineTuneJob, options: argparse.Namespace) -> list[LogOf]:
    """The logs that the options mean, in the order of the run."""
    logs = [log for name in await _names(target, job=job) if (log := _log_of(name)) is not None]
    return sorted(
        log
        for log in logs
        if log.index == options.index
        and options.stage in (None, STAGES[log.stage])
        and options.attempt in (None, log.attempt)
    )


async def _names(target: Target, *, job: FineTuneJob) -> list[str]:
    if target.home is not None:
        folder = target.home.logs(namespace=job.metadata.namespace, job=job.metadata.name)
        return [path.stem for path in folder.glob("*.log")]
    attempts = await attempts_of(cluster=target.cluster, job=job)
    return [pod.name for attempt in attempts.values() for pod in attempt.pods]


def _log_of(pod: str) -> LogOf | None:
    match = _POD_NAME.search(pod)
    if match is None:
        return None
    return LogOf(
        stage=_STAGE_NUMBERS[match["stage"]], attempt=int(match["attempt"]), index=int(match["index"]), pod=pod
    )


async def _print(target: Target, *, job: FineTuneJob, log: LogOf, follow: bool) -> None:
    if target.home is not None:
        folder = target.home.logs(namespace=job.metadata.namespace, job=job.metadata.name)
        pieces = _tail(folder / f"{log.pod}.log", target=target, job=job, log=log, follow=follow)
    elif target.session is not None:
        pieces = _from_cluster(target, job=job, log=log, follow=follow)
    async for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


async def _tail(path: Path, *, target: Target, job: FineTuneJob, log: LogOf, follow: bool) -> AsyncIterator[bytes]:
    """A file from its beginning; with `follow` until the pod that writes it has ended."""
    with path.open("rb") as stream:
        while True:
            writing = follow and await _is_running(target, job=job, log=log)
            if content := stream.read():
                yield content
            if not writing:
                return
            await asyncio.sleep(_POLL_SECONDS)


async def _is_running(target: Target, *, job: FineTuneJob, log: LogOf) -> bool:
    pod = await target.cluster.get(kind="Pod", namespace=job.metadata.namespace, name=log.pod)
    return pod is not None and (pod.get("status") or {}).get("phase") in ("Pending", "Running")


async def _from_cluster(target: Target, *, job: FineTuneJob, log: LogOf, follow: bool) -> AsyncIterator[bytes]:
    if target.session is None:
        return
    while True:
        pieces = target.session.log(namespace=job.metadata.namespace, pod=log.pod, container=CONTAINER, follow=follow)
        try:
            async for piece in pieces:
                yield piece
        except NotFoundError:
            if not follow:
                raise
            if await _is_running(target, job=job, log=log):  # it has not started yet
                await asyncio.sleep(_POLL_SECONDS)
                continue
        return
