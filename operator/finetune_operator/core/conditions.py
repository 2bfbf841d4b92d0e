"""Conditions by the rules of kstatus, so that kubectl wait, Flux and Argo CD understand an object without knowing it.

Exactly one of Ready, Reconciling and Stalled is true. All but Ready exist only while they say something.
`lastTransitionTime` moves only when a condition's status flips.
https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.base import Condition
from finetune_api.shared_fields import NextStatus
from finetune_operator.core.reasons import Reason
from finetune_operator.core.refusals import release_of
from finetune_operator.core.times import whole_second

State = Literal["Ready", "Reconciling", "Stalled"]
"""The three states of kstatus: exactly one of these conditions is true."""
MAXIMUM_MESSAGE = 4096
_HOLDS: dict[str, str] = {
    Reason.PLAN_UNSUPPORTED: "the version of the operator that began this, or a newer one: whoever runs it installs it",
    Reason.NOT_SUPPORTED: "a newer version of the operator, from whoever runs it, or a spec that this one can follow",
    Reason.NO_GATEWAY_IMAGE: "whoever runs the operator to set FINETUNE_GATEWAY_IMAGE",
    Reason.NO_VLLM_IMAGE: "whoever runs the operator to set the image, or another serving.runtime",
    Reason.ROUTES_UNREADABLE: "the ConfigMap with its routes to be restored or deleted, or the operator that wrote it",
    Reason.CANNOT_ADOPT: "the ModelVersions of its routes to be restored, or the ConfigMap with the routes deleted",
    Reason.TOO_LARGE: "a smaller spec",
}
"""By reason: what lets an object go on at which nothing moves."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How the object is, in one of three states."""

    state: State
    reason: str
    message: str


@dataclass(frozen=True)
class Wanted:
    """A condition as it should be."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


def what_holds(summary: Summary) -> NextStatus:
    """What an object at which nothing moves waits for; its message says what is wrong."""
    if summary.reason == Reason.CHILD_REFUSED:
        again = "it is asked again by itself, at least every two minutes"
        somebody = "whoever runs the cluster to let it in: the message has its own words"
        return NextStatus(waits_for=[release_of(summary.message) or somebody], then=[again])
    if summary.reason == Reason.NAME_TAKEN:
        return NextStatus(waits_for=[f"the name to be free: {summary.message.partition(': it is left alone')[0]}"])
    if summary.state != "Stalled":
        return NextStatus(waits_for=["the operator's next try: it comes by itself"])
    return NextStatus(waits_for=[_HOLDS.get(summary.reason, "somebody to put that right")])


def of_summary(summary: Summary) -> list[Wanted]:
    """Ready, and which of the other two states it is."""
    ready = Wanted("Ready", "True" if summary.state == "Ready" else "False", summary.reason, summary.message)
    other = Wanted(summary.state, "True", summary.reason, summary.message)
    return [ready] if summary.state == "Ready" else [ready, other]


def stamped(
    wanted: Iterable[Wanted], *, before: Sequence[Condition], generation: int, now: datetime
) -> list[Condition]:
    """The conditions, with the time of their last change. `before`: those of the last look."""
    old = {each.type: each for each in before}
    return [_stamped(each, old=old.get(each.type), generation=generation, now=whole_second(now)) for each in wanted]


def _stamped(wanted: Wanted, *, old: Condition | None, generation: int, now: datetime) -> Condition:
    since = old.last_transition_time if old is not None and old.status == wanted.status else None
    return Condition(
        type=wanted.type,
        status=wanted.status,
        observed_generation=generation,
        last_transition_time=since or now,
        reason=wanted.reason,
        message=wanted.message[:MAXIMUM_MESSAGE],
    )
