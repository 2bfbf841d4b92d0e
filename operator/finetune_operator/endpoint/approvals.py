"""Pure: an approval counts once, and for one thing: what waited for a person when it was given, or else the promotion.

The annotation says which version; status.approval says what it was given for, and whether it was used for that. It is
written together with what comes of it: a write that fails loses neither.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.modelendpoint import APPROVE, ApprovalStatus, HeldVersion, ModelEndpointStatus
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.requests import read_requests
from finetune_operator.endpoint.rollout.state import Shadowing, state_of

PROMOTION = "the promotion"
SHADOW = "a shadow that decided nothing"


def noted(observed: ObservedEndpoint, *, held: Sequence[HeldVersion]) -> ApprovalStatus | None:
    """The approval that is asked for now. One that was taken back is forgotten, so that another can be given.

    `held`: all versions that wait for a person before they are tried.
    """
    status, requests = observed.endpoint.status, read_requests(observed.endpoint.metadata.annotations)
    uid, known = requests.approve, status.approval
    if known is not None and known.uid == uid:
        return known
    holds = {each.uid: _waits_for(observed) for each in (status.candidate, status.stable) if each is not None}
    holds |= {each.uid: hold_of(each) for each in held}
    return ApprovalStatus(uid=uid, by=requests.who, hold=holds[uid]) if uid in holds else None


def hold_of(held: HeldVersion) -> str:
    """What an approval of a version that is held is given for: told apart by the baseline, not by the words of the
    reason, which another operator may choose otherwise."""
    return f"the comparison with {held.baseline}"


def passes(status: ModelEndpointStatus, *, uid: str, hold: str) -> bool:
    """Whether somebody has let this version pass this."""
    found = status.approval
    return found is not None and (found.uid, found.hold, found.used) == (uid, hold, False)


def used(status: ModelEndpointStatus, *, uid: str) -> ApprovalStatus | None:
    """The approval after the version has gone on by it."""
    found = status.approval
    return found.model_copy(update={"used": True}) if found is not None and found.uid == uid else found


def to_approve(status: ModelEndpointStatus, *, uid: str) -> str:
    """What a person does who wants a version to go on from where it waits."""
    found = status.approval
    return f"remove the annotation {APPROVE}, then approve it" if found and found.uid == uid else "approve it"


def held_words(status: ModelEndpointStatus, held: HeldVersion) -> str:
    """Why the version waits for a person, and what that one can do."""
    return f"{held.reason}; {to_approve(status, uid=held.uid)} or reject it ({APPROVE}: {held.uid})"


def _waits_for(observed: ObservedEndpoint) -> str:
    """What a person is asked now about the version that is watched."""
    status = observed.endpoint.status
    if status.step is not None and status.step.held is not None:
        return PROMOTION if status.step.void_approval else status.step.held
    state = state_of(status)
    return SHADOW if isinstance(state, Shadowing) and observed.now >= state.due else PROMOTION
