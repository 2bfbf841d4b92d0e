"""What an endpoint waits for, until when, what follows, and what a person may do: read off the facts of its status.

Pure. It says nothing that changes while nothing happens: a clock or a counter in it would be written at every look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointStatus
from finetune_api.shared_fields import NextStatus, Release
from finetune_operator.core.conditions import Summary, what_holds
from finetune_operator.core.reasons import Reason
from finetune_operator.endpoint.approvals import PROMOTION, SHADOW, hold_of, passes
from finetune_operator.endpoint.facts import stages_of
from finetune_operator.endpoint.requests import Requests, read_requests
from finetune_operator.endpoint.rollout.choose import formers
from finetune_operator.endpoint.rollout.plan import PlannedStep, RolloutPlan
from finetune_operator.endpoint.rollout.state import (
    AwaitingApproval,
    Canary,
    Guarding,
    Idle,
    Promoting,
    RollingBack,
    Shadowing,
    Starting,
    Trying,
    Unreadable,
    state_of,
)

_PINNED = (
    Reason.VERSION_NOT_FOUND,
    Reason.VERSION_FAILED_BEFORE,
    Reason.NOT_PROVEN,
    Reason.WRONG_TASK,
    Reason.COMPARISON_FAILED,
)
_ROUTES = "all gateways to follow the newest routes; one that stays silent: look at its pod"
_OVERDUE = {"Hold": "it waits for a person", "Reject": "it is rejected", "Proceed": "it goes on all the same"}
_TIMELESS: dict[str, str] = {
    Reason.WAITING_FOR_NODE: "a node with room for it, from whoever runs the cluster: there is no time limit",
    Reason.NAME_TAKEN: "the name of its servers to be free: there is no time limit",
}


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What all answers rest on."""

    endpoint: ModelEndpoint
    status: ModelEndpointStatus
    requests: Requests
    reason: str
    now: datetime
    waits_for: Sequence[str]
    due: datetime | None

    def pin(self, name: str) -> str:
        """That giving up the version takes a change of the spec as well; "" where it does not."""
        return f"; spec.version still pins {name}: change it" if self.endpoint.spec.version == name else ""

    def reject(self, name: str) -> Release:
        """To give up the candidate."""
        stable = self.status.stable
        stays = f"{stable.name} answers all requests" if stable is not None else "nothing is served"
        return Release(action="Reject", effect=f"{name} is given up and not tried again; {stays}{self.pin(name)}")

    @property
    def back_to(self) -> str:
        """The version that all requests go back to."""
        goal = self.status.previous if self.status.candidate is None else self.status.stable
        return goal.name if goal is not None else "the version before"

    def on_regression(self, plan: RolloutPlan, *, shadow: bool = False) -> str:
        """What a regression does by itself."""
        if plan.on_regression == "Pause":
            return "a regression that is proven holds it until a person decides (onRegression Pause)"
        if shadow:
            return "a regression that is proven rejects it (onRegression RollBack)"
        return f"a regression that is proven sends all requests back to {self.back_to} at once (onRegression RollBack)"


def next_of(
    endpoint: ModelEndpoint,
    *,
    status: ModelEndpointStatus,
    summary: Summary,
    now: datetime,
    waits_for: Sequence[str] = (),
    due: datetime | None = None,
) -> NextStatus:
    """`status`: the new one. `waits_for`: what only the statistics or the choice know. `due`: when to look again."""
    if summary.state == "Stalled":
        return _stalled(endpoint, summary=summary)
    look = _Look(
        endpoint=endpoint,
        status=status,
        requests=read_requests(endpoint.metadata.annotations),
        reason=summary.reason,
        now=now,
        waits_for=waits_for,
        due=due,
    )
    match state_of(status):
        case RollingBack():
            then = "the servers of the version that was left are removed once no gateway can send requests to it"
            return NextStatus(waits_for=[_ROUTES], then=[then])
        case Promoting() as state:
            return NextStatus(waits_for=[_ROUTES], then=[_after_promotion(state)])
        case Idle() | Unreadable():
            found = _idle(look)
        case Guarding() as state:
            found = _guard(look, state)
        case state if state.step.held is not None:
            found = _held(
                state.candidate.name, leave=look.reject(state.candidate.name), goes_on="goes on to its next step"
            )
        case Starting() as state:
            found = _starting(look, state)
        case AwaitingApproval() as state:
            found = _approval(look, state)
        case state:
            found = _sampling(look, state)
    return _paused(found, requests=look.requests) if look.requests.pause else found


def _paused(found: NextStatus, *, requests: Requests) -> NextStatus:
    """What a pause adds: nothing moves on before it ends."""
    still = f"it still waits for {found.waits_for[0]}" if found.waits_for else "it goes on from where it is"
    moves = [
        each.model_copy(update={"effect": f"{each.effect}; first, the pause must end"})
        if each.action == "Approve"
        else each
        for each in found.release
    ]
    return NextStatus(
        waits_for=[f"finetune.dev/pause to be removed: {requests.who} paused it", *found.waits_for],
        then=found.then,
        release=[Release(action="Resume", effect=still), *moves],
    )


# -- nothing under way ------------------------------------------------------------------------------------------------


def _stalled(endpoint: ModelEndpoint, *, summary: Summary) -> NextStatus:
    """Nothing moves until somebody changes something; the message says what."""
    release = []
    if summary.reason in _PINNED and endpoint.spec.version:
        effect = "leaves the choice to the operator: the newest proven version"
        release.append(Release(action="Unpin", effect=effect))
    if summary.reason == Reason.NOTHING_TO_ROLL_BACK_TO:
        release.append(Release(action="Withdraw", effect="withdraws the request to leave the version"))
    return what_holds(summary).model_copy(update={"release": release})


def _idle(look: _Look) -> NextStatus:
    status, stable = look.status, look.status.stable
    if stable is None:
        return NextStatus(
            waits_for=[
                "a ModelVersion that passed its evaluation and names this endpoint: a FineTuneJob with endpointRef "
                f"{look.endpoint.metadata.name} makes one"
            ],
            then=["the first one serves as soon as it is ready: there is nothing to compare it with"],
        )
    release = []
    if any(formers(status)):
        effect = (
            f"starts the servers of the version that was stable before; then all requests move to it, and {stable.name}"
            f" answers until then{look.pin(stable.name)}"
        ) + ("; first, the pause must end" if look.requests.pause else "")
        release = [Release(action="RollBack", effect=effect)]
    if look.requests.pause:
        return NextStatus(release=release)
    held = status.held
    if held is not None and not passes(status, uid=held.uid, hold=hold_of(held)):
        approve = f"{held.name} is tried although it is not proven: it still has to pass its steps"
        rollout = look.endpoint.spec.rollout
        if rollout is not None and rollout.approval == "Manual":
            approve += ", and a person is asked again before it is promoted"
        reject = f"{held.name} is given up and never tried{look.pin(held.name)}"
        choice = [Release(action="Approve", effect=approve), Release(action="Reject", effect=reject)]
        names = ", ".join(each.name for each in status.all_held)
        return NextStatus(waits_for=[f"a person to decide about {names}"], release=[*choice, *release])
    if look.reason == Reason.COMPARING:
        then = "if it passes, its servers are started and the rollout begins; else it is rejected"
        return NextStatus(waits_for=["the evaluation of the next version to end"], then=[then], release=release)
    newer = [] if look.waits_for else ["a newer proven version is tried as soon as there is one"]
    return NextStatus(waits_for=list(look.waits_for), then=newer, release=release)


# -- a rollout --------------------------------------------------------------------------------------------------------


def _starting(look: _Look, state: Starting) -> NextStatus:
    following = _following(state) if look.status.stable else "it serves all requests"
    release = [look.reject(state.candidate.name)]
    if look.reason == Reason.PAUSED:  # it is ready
        return NextStatus(then=[following], release=release)
    if look.reason in _TIMELESS:
        return NextStatus(waits_for=[_TIMELESS[look.reason]], then=[following], release=release)
    return NextStatus(
        waits_for=[f"{state.candidate.name} to answer a first request"],
        until=look.due,
        then=[following, "not ready by then, the time without a node apart: it is rejected"],
        release=release,
    )


def _held(name: str, *, leave: Release, goes_on: str) -> NextStatus:
    """A regression is proven, and onRegression is Pause."""
    wait = f"a person to decide about {name} (onRegression Pause): there is no time limit"
    return NextStatus(
        waits_for=[wait], release=[leave, Release(action="Approve", effect=f"{name} {goes_on} in spite of it")]
    )


def _sampling(look: _Look, state: Shadowing | Canary) -> NextStatus:
    step, plan, name = state.step, state.plan, state.candidate.name
    missing, until = [*look.waits_for, *_missing(look, state)], None
    then, release = [_following(state)], [look.reject(name)]
    if isinstance(state, Canary):
        least = state.planned.min_duration_seconds
        soonest = step.start_time + timedelta(seconds=least)
        if look.now < soonest:
            missing.append(f"{least} s to pass (minDurationSeconds)")
            until = soonest
    else:
        if look.now < state.due:
            until = state.due
            then.append(
                f"not decided by then: {_OVERDUE[plan.on_inconclusive]} (onInconclusive {plan.on_inconclusive})"
            )
        elif plan.on_inconclusive == "Hold" and not passes(look.status, uid=state.candidate.uid, hold=SHADOW):
            missing.append("or a person to decide: shadow.maxDurationSeconds is over (onInconclusive Hold)")
            release.insert(0, Release(action="Approve", effect=f"{name} goes on although it is not decided"))
    found = look.status.approval
    if plan.approval == "Manual" and found is not None and passes(look.status, uid=state.candidate.uid, hold=PROMOTION):
        then.append(f"{found.by} has approved it already: after the last step it is promoted at once")
    then.append(look.on_regression(plan, shadow=isinstance(state, Shadowing)))
    return NextStatus(waits_for=missing or [_ROUTES], until=until, then=then, release=release)


def _missing(look: _Look, state: Shadowing | Canary) -> list[str]:
    step, rows = state.step, look.status.analysis
    if step.samples < step.needed or not rows:
        noun = "pairs" if isinstance(state, Shadowing) else "samples"
        source = "" if state.plan.probe_rate else ": clients must send requests"
        if source and isinstance(state, Canary) and state.planned.match is not None:
            source = ": only requests with the headers of this step count"
        return [f"{step.needed} {noun} of each metric{source}"]
    undecided = [row.metric for row in rows if row.verdict == "Inconclusive"]
    return [f"more requests, until {' and '.join(undecided)} can be told"] if undecided else []


def _approval(look: _Look, state: AwaitingApproval) -> NextStatus:
    name, guard = state.candidate.name, state.plan.guard_seconds
    then = [look.on_regression(state.plan)]
    if passes(look.status, uid=state.candidate.uid, hold=PROMOTION):
        return NextStatus(waits_for=list(look.waits_for) or [_ROUTES], then=then, release=[look.reject(name)])
    watched = f", and it is watched for {guard} s" if guard else ""
    approve = Release(action="Approve", effect=f"{name} is promoted: all requests move to it{watched}")
    wait = f"a person to approve {name} (rollout.approval Manual): there is no time limit"
    return NextStatus(waits_for=[*look.waits_for, wait], then=then, release=[approve, look.reject(name)])


def _guard(look: _Look, state: Guarding) -> NextStatus:
    name, seconds = state.stable.name, state.plan.guard_seconds
    effect = f"all requests go back to {look.back_to} at once; {name} is not tried again{look.pin(name)}"
    leave = Release(action="RollBack", effect=effect)
    if state.step.held is not None:
        return _held(name, leave=leave, goes_on="stays, and its guard goes on,")
    return NextStatus(
        waits_for=[*look.waits_for, f"the {seconds} s of the guard to pass without a regression"],
        until=None if look.requests.pause else state.step.start_time + timedelta(seconds=seconds),
        then=[f"{name} stays, and the version before goes", look.on_regression(state.plan)],
        release=[leave],
    )


# -- words ------------------------------------------------------------------------------------------------------------


def _following(state: Trying) -> str:
    """What comes after the current stage."""
    plan, order = state.plan, stages_of(state.plan)
    stage, index = order[order.index((state.step.stage, state.step.index)) + 1]
    if stage == "Shadow" and plan.shadow is not None:
        return f"shadow, on copies of {plan.shadow.percent:g} % of the requests"
    if stage == "Canary":
        return _place(plan.steps[index])
    return "approval by a person" if stage == "Approval" else "promotion"


def _place(step: PlannedStep) -> str:
    """`step five, 5 % of the users`."""
    headers = " and ".join(f"{name}: {value}" for name, value in (step.match or {}).items())
    users = f"step {step.name}, {step.percent:g} % of the users"
    return f"{users} whose requests have {headers}" if headers else users


def _after_promotion(state: Promoting) -> str:
    seconds, previous = state.plan.guard_seconds, state.previous
    if previous is None or not seconds:
        return "nothing is left to do"
    return f"it is watched for {seconds} s, and {previous.name} stays warm"
