"""`finetune watch`: the views of `run` and `up`, for what others work on: on a cluster, or beside another terminal."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.cli.columns import resource_of
from finetune_operator.cli.errors import EXIT_STATUS_OF_PHASE, CommandError, ExitStatus
from finetune_operator.cli.outcome import outcome
from finetune_operator.cli.run_view import RunShows
from finetune_operator.cli.snapshot import Snapshot
from finetune_operator.cli.target import Target, open_target
from finetune_operator.cli.up_view import EndpointView, UpShows
from finetune_operator.cli.view import View, stopped_by
from finetune_operator.core.ports import Kind, Manifest, UnavailableError
from finetune_operator.local.cluster import utc_now
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.services import HOST, HTTP_PORT, LocalServices

_LOOK_SECONDS = 0.2
_CLUSTER_LOOK_SECONDS = 1.0
_HINT = "Ctrl-C only ends the view."
Seen = TypeVar("Seen")


async def run(options: argparse.Namespace) -> int:
    """Show a job to its end, with the exit status of `finetune run`; an endpoint until Ctrl-C."""
    kind = resource_of(options.kind).kind
    if kind == "ModelVersion":
        raise CommandError(f"a version does not change; finetune describe version {options.name} shows it")
    async with open_target(options) as target:
        await target.read(kind=kind, name=options.name)
        if kind == "ModelEndpoint":
            rollout = View[Sequence[EndpointView]].chosen(UpShows(), options=options, hint=_HINT)
            await _follow(rollout, target, look=partial(_endpoint, name=options.name), over=lambda _: False)
            return ExitStatus.INTERRUPTED
        view = View[Snapshot].chosen(RunShows(), options=options, hint=_HINT)
        look = partial(_job, name=options.name, reports=target.reports())
        last = await _follow(view, target, look=look, over=lambda seen: seen.ended)
    if last is None:
        return ExitStatus.INTERRUPTED
    view.say(outcome(last.job, home=target.home, logs=None))
    return EXIT_STATUS_OF_PHASE[last.phase]


async def _follow(
    view: View[Seen], target: Target, *, look: Callable[[Target], Awaitable[Seen]], over: Callable[[Seen], bool]
) -> Seen | None:
    """Show what is seen until it is over, and return that. None: somebody did not want to see more.

    It outlives an apiserver that is away for a while. Raises CommandError where the object was deleted.
    """
    stopped, trouble = asyncio.Event(), ""
    seconds = _LOOK_SECONDS if target.home is not None else _CLUSTER_LOOK_SECONDS
    with stopped_by(stopped.set, view=view):
        try:
            while not stopped.is_set():
                try:
                    seen = await look(target)
                except UnavailableError as error:
                    if str(error) != trouble:
                        view.say(f"warning: {error}")
                    trouble = str(error)
                else:
                    trouble = ""
                    view.show(seen)
                    if over(seen):
                        return seen
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), seconds)
        finally:
            view.close()
    return None


async def _read(target: Target, *, kind: Kind, name: str) -> Manifest:
    found = await target.cluster.get(kind=kind, namespace=target.namespace, name=name)
    if found is None:
        raise CommandError(f"{name} was deleted", status=ExitStatus.FAILED)
    return found


async def _job(target: Target, *, name: str, reports: FileProgress | None) -> Snapshot:
    job = FineTuneJob.from_object(await _read(target, kind="FineTuneJob", name=name))
    return Snapshot.newest(job, reports=reports, now=utc_now())


async def _endpoint(target: Target, *, name: str) -> Sequence[EndpointView]:
    endpoint = await _read(target, kind="ModelEndpoint", name=name)
    return [view_of(ModelEndpoint.from_object(endpoint), target=target)]


def view_of(endpoint: ModelEndpoint, *, target: Target) -> EndpointView:
    """An endpoint as it is seen from outside of whoever works on it."""
    name = endpoint.metadata.name
    where = f"{name}.{target.namespace}"
    if target.home is not None:
        port = LocalServices(home=target.home).known_port(namespace=target.namespace, name=name, port=HTTP_PORT)
        where = f"{HOST}:{port}" if port else ""
    return EndpointView(endpoint=endpoint, url=f"http://{where}/v1" if where else "", now=utc_now())
