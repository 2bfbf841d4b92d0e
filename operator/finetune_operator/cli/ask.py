"""What a person asks of an endpoint, in one patch: for the command line and the console."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from finetune_api.modelendpoint import APPROVE, ModelEndpoint, VersionMeant
from finetune_operator.cli.errors import CommandError, ExitStatus
from finetune_operator.cli.target import Target
from finetune_operator.cli.wishes import (
    Changes,
    Verb,
    counts_no_more,
    decision_changes,
    pause_changes,
    resume_changes,
    version_meant,
    withdraws_approval,
)

LOOK_SECONDS = 0.5
_NOTED_SECONDS = 15.0
_PARTICIPLES: dict[Verb, str] = {
    "approve": "approved",
    "reject": "rejected",
    "rollback": "to be rolled back",
    "pause": "paused",
    "resume": "resumed",
}
_FOLLOWS: dict[Verb, str] = {
    "approve": "it still has to pass its steps; where approval is Manual, it is promoted after the last one",
    "reject": "it is left and not tried again",
    "rollback": "it is left and not tried again",
    "pause": "nothing moves on until finetune resume; it is still watched, and a regression is acted upon",
    "resume": "it goes on from where it is",
}
"""Where the status does not say what comes of it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a person asked of an endpoint."""

    endpoint: ModelEndpoint
    """As it was then."""
    verb: Verb
    version: VersionMeant | None
    changes: Changes
    """What was written; {}: it is so already."""

    @property
    def lines(self) -> list[str]:
        """What was asked for, and what comes of it."""
        name = self.endpoint.metadata.name
        if not self.changes:
            return [f"{name} is {'paused already' if self.verb == 'pause' else 'not paused by anybody'}"]
        subject = f"{self.version.name} at {name}" if self.version is not None else name
        follows = what_follows(self.endpoint, verb=self.verb, version=self.version)
        said = [f"{subject}: {_PARTICIPLES[self.verb]}", f"next: {follows}"]
        if self.verb == "pause" and withdraws_approval(self.endpoint, changes=self.changes):
            said.append("the approval that somebody else had given is withdrawn")
        return said


async def ask(target: Target, *, name: str, verb: Verb, version: str | None) -> Asked:
    """Write what a person asks of an endpoint, with that person's rights. `version`: the only one that may be meant.

    Raises CommandError, InvalidError where a policy refuses it, UnavailableError where a right is lacking.
    """
    endpoint = await read_endpoint(target, name=name)
    meant, changes = await _wish(endpoint, verb=verb, name=version, target=target)
    if verb == "approve" and counts_no_more(endpoint, changes=changes):
        await _take_back(target, name=name)
    if changes:
        await target.annotate(kind="ModelEndpoint", name=name, annotations=changes)
    return Asked(endpoint=endpoint, verb=verb, version=meant, changes=changes)


async def read_endpoint(target: Target, *, name: str) -> ModelEndpoint:
    """Raises CommandError where there is none, UnavailableError."""
    return ModelEndpoint.from_object(await target.read(kind="ModelEndpoint", name=name))


async def _take_back(target: Target, *, name: str) -> None:
    """An approval counts once: before another one is given, the operator has to see that this one is gone."""
    await target.annotate(kind="ModelEndpoint", name=name, annotations={APPROVE: None})
    due = time.monotonic() + _NOTED_SECONDS
    while (await read_endpoint(target, name=name)).status.approval is not None:
        if time.monotonic() >= due:
            raise CommandError(
                f"the approval that was given for something else is taken back, and no operator took note within "
                f"{_NOTED_SECONDS:g} s: approve it again when one works on {name}",
                status=ExitStatus.FAILED,
            )
        await asyncio.sleep(LOOK_SECONDS)


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


def what_follows(endpoint: ModelEndpoint, *, verb: Verb, version: VersionMeant | None) -> str:
    """What the operator does next, in its own words (status.next), as far as it has said so."""
    status = endpoint.status
    watched = status.candidate or (status.stable if status.step is not None else status.held)
    if verb in ("reject", "rollback"):
        action = "RollBack" if version is not None and version == status.stable else "Reject"
    else:
        action = verb.capitalize()
    about = version is None or version == watched or action == "RollBack"
    said = [each.effect for each in (status.next.release if status.next else ()) if about and each.action == action]
    return said[0] if said else _FOLLOWS[verb]
