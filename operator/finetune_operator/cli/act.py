"""`finetune approve|reject|rollback|pause|resume`: ask something of an endpoint, and follow what comes of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console

from finetune_api.streams import tell
from finetune_operator.cli.ask import LOOK_SECONDS, ask, read_endpoint
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.target import Target, open_target, shell_of
from finetune_operator.cli.up_view import EndpointView, UpShows
from finetune_operator.cli.view import View
from finetune_operator.cli.watch import view_of
from finetune_operator.cli.wishes import Verb, progress_of
from finetune_operator.core.ports import UnavailableError


async def run(options: argparse.Namespace) -> int:
    """Ask, say what follows, and with --wait follow until it is so."""
    verb: Verb = options.verb
    async with open_target(options) as target:
        asked = await ask(target, name=options.name, verb=verb, version=getattr(options, "version", None))
        for line in asked.lines:
            tell(line)
        if asked.changes and target.home is not None and not target.home.is_in_use:
            tell("nothing works in this folder now: it takes effect when `finetune up` runs")
        if not options.wait:
            if asked.changes:
                tell(f"how it goes: {shell_of(options, target=target).finetune('explain', 'endpoint', options.name)}")
            return ExitStatus.DONE
        uid = asked.version.uid if asked.version is not None else ""
        return await _follow(target, name=options.name, verb=verb, uid=uid, timeout_seconds=options.timeout)


async def _follow(target: Target, *, name: str, verb: Verb, uid: str, timeout_seconds: float | None) -> int:
    """Show what goes on until the endpoint is in the state that was asked for: in a terminal how far it is."""
    if not sys.stdout.isatty():
        return await _until_reached(target, name=name, verb=verb, uid=uid, timeout_seconds=timeout_seconds)
    view = View[Sequence[EndpointView]](UpShows(), hint="Ctrl-C only ends the view.", console=Console())
    try:
        return await _until_reached(target, name=name, verb=verb, uid=uid, timeout_seconds=timeout_seconds, view=view)
    finally:
        view.close()


async def _until_reached(
    target: Target,
    *,
    name: str,
    verb: Verb,
    uid: str,
    timeout_seconds: float | None,
    view: View[Sequence[EndpointView]] | None = None,
) -> int:
    """Without a view: a line for each change."""
    due = time.monotonic() + timeout_seconds if timeout_seconds is not None else float("inf")
    shown, where = "", "nothing was seen of it"
    while True:
        try:
            endpoint = await read_endpoint(target, name=name)
        except UnavailableError as error:
            where = str(error)  # a wait outlives an apiserver that is away for a while
        else:
            where = f"{endpoint.status.phase or 'Empty'}: {endpoint.status.message or ''}"
            if view is not None:
                view.show([view_of(endpoint, target=target)])
            elif where != shown:
                tell(f"{datetime.now().astimezone():%H:%M:%S} {where}")
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
        await asyncio.sleep(LOOK_SECONDS)
