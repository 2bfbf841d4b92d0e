"""Pure: decisions on an endpoint that have no effect, since they name another version than they could be about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointStatus
from finetune_operator.endpoint.approvals import to_approve
from finetune_operator.endpoint.requests import Requests, read_requests

Decision = Literal["approve", "reject", "rollback"]
_CARRIED_OUT: Mapping[Decision, Collection[str]] = {
    "approve": ("Promoted",),
    "reject": ("Rejected", "RolledBack"),
    "rollback": ("RolledBack",),
}


def decisions_of(requests: Requests) -> dict[Decision, str]:
    """What is asked for, and of which version (by UID)."""
    asked: dict[Decision, str] = {
        "approve": requests.approve,
        "reject": requests.reject,
        "rollback": requests.rollback,
    }
    return {decision: uid for decision, uid in asked.items() if uid}


def void_decisions(endpoint: ModelEndpoint) -> dict[Decision, str]:
    """The decisions that are void, each with the reason: `it is for another version, v1 (UID), not for v2`.

    One that was carried out is not among them. An approval is, as soon as there is something else that it could be
    mistaken to be for.
    """
    status, approval = endpoint.status, endpoint.status.approval
    found: dict[Decision, str] = {}
    for decision, uid in decisions_of(read_requests(endpoint.metadata.annotations)).items():
        became = {each.outcome for each in status.versions if each.uid == uid}
        mistakable = decision == "approve" and status.candidate is not None
        carried_out = not became.isdisjoint(_CARRIED_OUT[decision]) and not mistakable
        waits = decision == "approve" and not became and approval is not None and approval.uid == uid
        if uid not in _meant(status, decision) and not carried_out and not waits:
            found[decision] = _reason(status, uid=uid)
        elif decision == "approve" and status.approval is not None and _is_asked(status, uid=uid):
            again = to_approve(status, uid=uid)
            found[decision] = f"it was given for {status.approval.hold}, and counts once: {again}"
    return found


def _is_asked(status: ModelEndpointStatus, *, uid: str) -> bool:
    """Whether this version waits for an approval."""
    about = status.candidate or (status.held if status.step is None else status.stable)
    asked = status.next is not None and any(each.action == "Approve" for each in status.next.release)
    return asked and about is not None and about.uid == uid


def names_of(status: ModelEndpointStatus) -> dict[str, str]:
    """The versions that the endpoint knows: UID → name."""
    served = (status.stable, status.candidate, status.previous)
    return {outcome.uid: outcome.name for outcome in status.versions} | {
        version.uid: version.name for version in (*served, *status.all_held) if version is not None
    }


def _meant(status: ModelEndpointStatus, decision: Decision) -> list[str]:
    """UIDs of the versions that a decision can be about now."""
    candidate = [status.candidate.uid] if status.candidate is not None else []
    stable = [status.stable.uid] if status.stable is not None else []
    if decision == "rollback":
        return candidate + stable
    watched = decision == "approve" or status.previous is not None
    return (candidate or (stable if watched else [])) + [each.uid for each in status.all_held]


def _reason(status: ModelEndpointStatus, *, uid: str) -> str:
    name = names_of(status).get(uid)
    which = f", {name} ({uid})" if name else f" ({uid})"
    if status.candidate is not None:
        return f"it is for another version{which}, not for {status.candidate.name}"
    return f"it is for a version that is not under way{which}"
