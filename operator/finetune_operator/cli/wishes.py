"""What a person may ask of an endpoint: which version is meant, what is written, and when it has been done.

Pure. A wish is an annotation that names a version by UID (endpoint/requests.py): it is void for any other one, and it
stays on the object until somebody removes it. So each wish clears away what no longer has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finetune_api.modelendpoint import (
    APPROVE,
    PAUSE,
    REJECT,
    REQUESTED_BY,
    ROLLBACK,
    ModelEndpoint,
    ModelEndpointStatus,
    VersionMeant,
)
from finetune_operator.cli.errors import CommandError
from finetune_operator.endpoint.requests import read_requests
from finetune_operator.endpoint.rollout.choose import PARTICIPLES, formers, outcome_of
from finetune_operator.endpoint.void_requests import void_decisions

Verb = Literal["approve", "reject", "rollback", "pause", "resume"]
_ANNOTATION: Mapping[Verb, str] = {"approve": APPROVE, "reject": REJECT, "rollback": ROLLBACK}
Changes = dict[str, str | None]
"""Annotations to write in one patch; None removes."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a wish has come."""

    reached: bool = False
    failed: str = ""
    """Why it cannot be reached any more."""
    given_up: bool = False
    """The version was rejected or rolled back instead."""


def version_meant(endpoint: ModelEndpoint, *, verb: Verb, name: str | None) -> VersionMeant:
    """The version that `approve`, `reject` or `rollback` is about. Raises CommandError where there is none."""
    status = endpoint.status
    possible = _possible(status, verb=verb, named=name is not None)
    if name is not None:
        chosen = next((version for version in possible if version.name == name), None)
        if chosen is None:
            raise CommandError(_not_under_way(endpoint, verb=verb, name=name, possible=possible))
    elif len(possible) > 1 and verb in ("approve", "reject"):
        raise CommandError(_which(endpoint, verb=verb, possible=possible))
    elif possible:
        chosen = possible[0]
    else:
        raise CommandError(_nothing(endpoint, verb=verb))
    leaves_stable = verb == "rollback" and status.stable is not None and chosen.uid == status.stable.uid
    if leaves_stable and status.previous is None and not any(formers(status)):
        raise CommandError(
            f"{endpoint.metadata.name} cannot leave {chosen.name}: there is no other version that was stable before; "
            "apply a FineTuneJob, or pin another version with spec.version"
        )
    return chosen


def decision_changes(endpoint: ModelEndpoint, *, verb: Verb, uid: str, by: str) -> Changes:
    """To ask for `verb` of this version. The newest decision takes the place of all earlier ones."""
    known = endpoint.metadata.annotations
    old = {name: None for name in _ANNOTATION.values() if name in known}
    return {**old, _ANNOTATION[verb]: uid, REQUESTED_BY: by}


def pause_changes(endpoint: ModelEndpoint, *, by: str) -> Changes:
    """To stay where it is; empty where that is asked for already.

    Whoever pauses signs for the decisions that stay (manifests/policy/requests.yaml). An approval that somebody else
    gave is withdrawn rather than signed for: that can only hold the rollout.
    """
    requests = read_requests(endpoint.metadata.annotations)
    if requests.pause:
        return {}
    withdrawn: Changes = {APPROVE: None} if requests.approve and requests.by != by else {}
    return {**_void_decisions(endpoint), **withdrawn, PAUSE: "true", REQUESTED_BY: by}


def counts_no_more(endpoint: ModelEndpoint, *, changes: Changes) -> bool:
    """Whether the approval that these changes would write is there, and was given for something else."""
    written = changes.get(APPROVE)
    return written == endpoint.metadata.annotations.get(APPROVE) and "approve" in void_decisions(endpoint)


def withdraws_approval(endpoint: ModelEndpoint, *, changes: Changes) -> bool:
    """Whether these changes take back an approval that is in force."""
    return changes.get(APPROVE, "") is None and APPROVE not in _void_decisions(endpoint)


def resume_changes(endpoint: ModelEndpoint) -> Changes:
    """To go on; empty where nobody has paused it."""
    known = endpoint.metadata.annotations
    if PAUSE not in known:
        return {}
    void = _void_decisions(endpoint)
    remains = [name for name in _ANNOTATION.values() if name in known and name not in void]
    signature: Changes = {REQUESTED_BY: None} if REQUESTED_BY in known and not remains else {}
    return {**void, PAUSE: None, **signature}


def progress_of(endpoint: ModelEndpoint, *, verb: Verb, uid: str) -> Progress:
    """How far the endpoint is with what was asked for."""
    status = endpoint.status
    match verb:
        case "pause":
            return Progress(reached=_is_paused(status))
        case "resume":
            return Progress(reached=not _is_paused(status) or _is_held(status))
        case "approve":
            return _promotion(status, uid=uid)
        case "reject" | "rollback":
            return _departure(status, verb=verb, uid=uid)


# -- which version ----------------------------------------------------------------------------------------------------


def _possible(status: ModelEndpointStatus, *, verb: Verb, named: bool) -> list[VersionMeant]:
    """The versions that a verb can be about now, the one meant without a name first."""
    candidate: list[VersionMeant] = [status.candidate] if status.candidate is not None else []
    held: list[VersionMeant] = [*status.all_held]
    if verb == "reject":
        return candidate + held
    stage = status.step.stage if status.step is not None else None
    stable: list[VersionMeant] = [status.stable] if status.stable is not None else []
    if verb == "rollback":
        # The version that is being left is not stable any more: whoever types this again does not mean the one after.
        return candidate + ([] if stage == "RollingBack" and not named else stable)
    under_guard = stage == "Guard" and status.previous is not None
    return candidate + (stable if under_guard and (named or _is_held(status)) else []) + held


def _which(endpoint: ModelEndpoint, *, verb: Verb, possible: list[VersionMeant]) -> str:
    """All that can be meant, and how to say which."""
    why = {each.uid: each.reason for each in endpoint.status.all_held}
    each_one = ", ".join(f"{each.name} ({why.get(each.uid, 'it is being rolled out')})" for each in possible)
    choose = " or ".join(f"--version {each.name}" for each in possible)
    return f"{endpoint.metadata.name} has {len(possible)} versions to {_INFINITIVES[verb]}: {each_one}; say {choose}"


def _nothing(endpoint: ModelEndpoint, *, verb: Verb) -> str:
    name, status = endpoint.metadata.name, endpoint.status
    stable = status.stable
    if stable is None:
        return f"nothing to {_INFINITIVES[verb]}: {name} serves no version and tries none"
    if verb == "rollback":
        more = f"; to leave that one as well: --version {stable.name}" if any(formers(status)) else ""
        return f"{name} is going back to {stable.name} already{more}"
    if verb == "reject" and status.previous is not None:
        return f"{stable.name} is promoted and under guard: finetune rollback {name} leaves it"
    return f"nothing to {_INFINITIVES[verb]}: {name} tries no version now, {stable.name} is stable"


def _not_under_way(endpoint: ModelEndpoint, *, verb: Verb, name: str, possible: list[VersionMeant]) -> str:
    outcome = next((each for each in reversed(endpoint.status.versions) if each.name == name), None)
    became = f" ({name} was {_PAST[outcome.outcome]}: {outcome.reason})" if outcome is not None else ""
    instead = " or ".join(version.name for version in possible)
    way_out = f"it can be done with {instead}" if instead else _nothing(endpoint, verb=verb)
    return f"--version {name}: not a version to {_INFINITIVES[verb]} at {endpoint.metadata.name} now{became}; {way_out}"


_INFINITIVES = {"approve": "approve", "reject": "reject", "rollback": "roll back"}
_PAST = {**PARTICIPLES, "Promoted": "promoted", "Superseded": "superseded", "Held": "held"}


# -- annotations ------------------------------------------------------------------------------------------------------


def _void_decisions(endpoint: ModelEndpoint) -> Changes:
    """Decisions about versions that are not under way any more, and an approval that was used."""
    status, known = endpoint.status, endpoint.metadata.annotations
    spent = {APPROVE} if status.approval is not None and status.approval.used else set()
    live = {version.uid for version in (status.candidate, status.stable, *status.all_held) if version is not None}
    return {
        name: None
        for name in _ANNOTATION.values()
        if name in known and (name in spent or known[name].strip() not in live)
    }


# -- how far ----------------------------------------------------------------------------------------------------------


def _promotion(status: ModelEndpointStatus, *, uid: str) -> Progress:
    stage = status.step.stage if status.step is not None else None
    if status.candidate is not None and status.candidate.uid == uid:
        return Progress()
    if outcome_of(status, uid) is None and uid in {each.uid for each in status.all_held}:
        return Progress()
    if status.stable is not None and status.stable.uid == uid:
        return Progress(reached=stage != "Promoting" and not (stage == "Guard" and _waits_for_a_person(status)))
    outcome = outcome_of(status, uid)
    why = f"{outcome.name} was {_PAST[outcome.outcome]} ({outcome.reason}, by {outcome.by})" if outcome else ""
    return Progress(failed=why or "the version is gone", given_up=outcome is not None)


def _departure(status: ModelEndpointStatus, *, verb: Verb, uid: str) -> Progress:
    """Until the version answers nobody any more."""
    serves = {version.uid for version in (status.candidate, status.stable, *status.all_held) if version is not None}
    stage = status.step.stage if status.step is not None else None
    if uid not in serves:
        return Progress(reached=stage not in ("RollingBack", "Promoting"))
    if stage is None and verb == "reject":
        return Progress(failed="it was promoted before, and its guard is over: rollback leaves it")
    stalled = next((each for each in status.conditions if each.type == "Stalled" and each.status == "True"), None)
    if stage is None and stalled is not None and stalled.reason == "NothingToRollBackTo":
        return Progress(failed=stalled.message)
    return Progress()


def _is_paused(status: ModelEndpointStatus) -> bool:
    return status.phase == "Paused" or _reason(status) == "Paused"


def _is_held(status: ModelEndpointStatus) -> bool:
    return status.step is not None and status.step.held is not None


def _waits_for_a_person(status: ModelEndpointStatus) -> bool:
    return _reason(status) == "Regression"


def _reason(status: ModelEndpointStatus) -> str:
    return next((each.reason for each in status.conditions if each.type == "Ready"), "")
