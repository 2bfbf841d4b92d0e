"""`finetune approve|reject|rollback|pause|resume`: what a person asks of an endpoint, in one patch."""

from __future__ import annotations

import argparse
import asyncio
import time
from datetime import datetime

from finetune_api.modelendpoint import ModelEndpoint, VersionMeant
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.follow_ups import what_follows
from finetune_operator.cli.target import Target, open_target, shell_of
from finetune_operator.cli.wishes import (
    Changes,
    Verb,
    decision_changes,
    pause_changes,
    progress_of,
    resume_changes,
    version_meant,
    withdraws_approval,
)
from finetune_operator.ports import UnavailableError

_LOOK_SECONDS = 0.5
_PARTICIPLES: dict[Verb, str] = {
    "approve": "approved",
    "reject": "rejected",
    "rollback": "to be rolled back",
    "pause": "paused",
    "resume": "resumed",
}


async def run(options: argparse.Namespace) -> int:
    """Ask, say what follows, and with --wait follow until it is so."""
    verb: Verb = options.verb
    async with open_target(options) as target:
        endpoint = await _read(target, name=options.name)
        version, changes = await _wish(endpoint, verb=verb, name=getattr(options, "version", None), target=target)
        if changes:
            await target.annotate(kind="ModelEndpoint", name=options.name, annotations=changes)
            _say(options, target=target, endpoint=endpoint, version=version, changes=changes)
        else:
            print(f"{options.name} is {'paused already' if verb == 'pause' else 'not paused by anybody'}")
        if not options.wait:
            return ExitStatus.DONE
        uid = version.uid if version is not None else ""
        return await _follow(target, name=options.name, verb=verb, uid=uid, timeout_seconds=options.timeout)


async def _read(target: Target, *, name: str) -> ModelEndpoint:
    return ModelEndpoint.from_object(await target.read(kind="ModelEndpoint", name=name))


async def _wish(
    endpoint: ModelEndpoint, *, verb: Verb, name: str | None, target: Target
) -> tuple[VersionMeant | None, Changes]:
    """The version meant, where one is, and the annotations to write; {}: it is so already."""
    if verb == "resume":
        held = endpoint.status.step.held if endpoint.status.step is not None else None
        changes = resume_changes(endpoint)
        if not changes and held:
            raise CommandError(
                f"{endpoint.metadata.name} was not paused by anybody: a regression holds it ({held}); approve, reject"
                " or roll it back"
            )
        return None, changes
    by = await target.user_name()
    if verb == "pause":
        return None, pause_changes(endpoint, by=by)
    version = version_meant(endpoint, verb=verb, name=name)
    return version, decision_changes(endpoint, verb=verb, uid=version.uid, by=by)


def _say(
    options: argparse.Namespace,
    *,
    target: Target,
    endpoint: ModelEndpoint,
    version: VersionMeant | None,
    changes: Changes,
) -> None:
    name, verb = endpoint.metadata.name, options.verb
    subject = f"{version.name} at {name}" if version is not None else name
    print(f"{subject}: {_PARTICIPLES[verb]}")
    print(f"next: {what_follows(endpoint, verb=verb, version=version)}")
    if verb == "pause" and withdraws_approval(endpoint, changes=changes):
        print("the approval that somebody else had given is withdrawn")
    if target.home is not None and not target.home.is_in_use:
        print("nothing works in this folder now: it takes effect when `finetune up` runs")
    if not options.wait:
        print(f"how it goes: {shell_of(options, target=target).finetune('explain', 'endpoint', name)}")


async def _follow(target: Target, *, name: str, verb: Verb, uid: str, timeout_seconds: float | None) -> int:
    """Print what changes until the endpoint is in the state that was asked for."""
    due = time.monotonic() + timeout_seconds if timeout_seconds is not None else float("inf")
    shown, where = "", "nothing was seen of it"
    while True:
        try:
            endpoint = await _read(target, name=name)
        except UnavailableError as error:
            where = str(error)  # a wait outlives an apiserver that is away for a while
        else:
            where = f"{endpoint.status.phase or 'Empty'}: {endpoint.status.message or ''}"
            if where != shown:
                print(f"{datetime.now().astimezone():%H:%M:%S} {where}", flush=True)
                shown = where
            progress = progress_of(endpoint, verb=verb, uid=uid)
            if progress.reached:
                return ExitStatus.DONE
            if progress.failed:
                status = ExitStatus.REJECTED if progress.given_up else ExitStatus.FAILED
                raise CommandError(f"{name}: {progress.failed}", status=status)
        if time.monotonic() >= due:
            message = f"{name} was not so far within {timeout_seconds:g} s; the request stays ({where})"
            raise CommandError(message, status=ExitStatus.FAILED)
        await asyncio.sleep(_LOOK_SECONDS)
