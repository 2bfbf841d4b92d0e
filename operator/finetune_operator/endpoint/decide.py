"""What a ModelEndpoint should do next: a judgement on what was observed, and on nothing else.

    Empty -> (first version ready) -> Idle
    Idle -> Shadowing -> Canary -> AwaitingApproval -> Promoting -> Guarding -> Idle

Paused is an answer to a person's wish, or to a regression with onRegression Pause; RollingBack comes from everywhere
after Idle. Each look changes recorded facts by at most one step (facts.py). Routes and servers follow from the facts
that were recorded (children.py), at the look after: whoever is killed between any two writes leaves nothing undone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.base import size_problem
from finetune_api.modelendpoint import ApprovalStatus, ModelEndpointStatus, Outcome, ServedVersion, StepStatus
from finetune_api.modelversion import ModelVersion
from finetune_operator.core.conditions import Summary
from finetune_operator.core.controller import Event
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import whole_second
from finetune_operator.endpoint import facts
from finetune_operator.endpoint.adopt import adopted
from finetune_operator.endpoint.analysis.judge import Judgement, judge, shadow_problem
from finetune_operator.endpoint.approvals import PROMOTION, SHADOW, noted, passes, to_approve, used
from finetune_operator.endpoint.children import children_of, outdated, retired, server_taken, unwanted
from finetune_operator.endpoint.comparison.comparing import compare
from finetune_operator.endpoint.comparison.comparison import stale
from finetune_operator.endpoint.decision import Draft, EndpointDecision
from finetune_operator.endpoint.finish import finish
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.requests import Requests, read_requests
from finetune_operator.endpoint.rollout.choose import PARTICIPLES, Choice, choose, choose_former, order_of
from finetune_operator.endpoint.rollout.plan import RolloutPlan, resolve
from finetune_operator.endpoint.rollout.proof import doubted
from finetune_operator.endpoint.rollout.routing import routes_of, same_content
from finetune_operator.endpoint.rollout.state import (
    PHASES,
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
    Watched,
    state_of,
)
from finetune_operator.endpoint.serving.manifests import unservable

_TAKEN_EVERY = timedelta(seconds=60)
"""How often it is written that a version still waits for a name."""
_NOTHING_SEEN = Judgement(state=None, rows=[], trip=None)


def decide(observed: ObservedEndpoint) -> EndpointDecision:
    """The next step of an endpoint. The same observation gives the same answer, whoever asks and how often."""
    if observed.endpoint.metadata.deletion_timestamp is not None:
        return EndpointDecision()  # its children go by their owner references
    if observed.routes_problem is not None:
        return finish(observed=observed, draft=_stalled(observed, Reason.ROUTES_UNREADABLE, observed.routes_problem))
    before, approval = observed.endpoint.status, noted(observed, held=choose(observed).held)
    step = before.step
    if step is not None and approval in (None, before.approval):  # it went, or is known: no older CRD has pruned it
        step = step.model_copy(update={"void_approval": False})
    noting = _with_status(observed, facts.changed(before, approval=approval, step=step))
    draft, choice = _draft(noting), choose(noting)
    waiting = list(choice.held)
    draft = replace(draft, status=facts.changed(draft.status, held=next(iter(waiting), None), also_held=waiting[1:11]))
    return finish(
        observed=observed,
        draft=draft,
        children=children_of(observed),
        delete=(*retired(observed), *outdated(observed), *unwanted(observed), *stale(observed, wanted=choice.compare)),
    )


def _draft(observed: ObservedEndpoint) -> Draft:
    status = observed.endpoint.status
    if status.stable is None and status.candidate is None and observed.routes is not None:
        return _adopt(observed)
    match state_of(status):
        case Unreadable(problem=problem):
            message = f"{problem}; install the version of the operator that began this rollout, or a newer one"
            return _stalled(observed, Reason.PLAN_UNSUPPORTED, message)
        case Idle():
            return _idle(observed)
        case RollingBack() as state:
            return _rolling_back(observed, state)
        case Promoting() as state:
            return _promoting(observed, state)
        case Guarding() as state:
            return _guard(observed, state)
        case state:
            return _candidate(observed, state)


# -- nothing under way ------------------------------------------------------------------------------------------------


def _idle(observed: ObservedEndpoint) -> Draft:
    status = observed.endpoint.status
    too_large = size_problem(observed.endpoint.spec)
    if too_large is not None:
        return _stalled(observed, Reason.TOO_LARGE, too_large)
    requests = read_requests(observed.endpoint.metadata.annotations)
    former = Choice()
    if status.stable is not None and requests.rollback == status.stable.uid:
        former = choose_former(observed)
        if former.version is not None:
            left = facts.with_outcome(
                status, status.stable, outcome="RolledBack", reason="requested", now=observed.now, by=requests.who
            )
            return _begin(observed, former, former.version, status=left)
    if requests.pause and former.problem is None:
        message = "paused: no version is tried until the annotation finetune.dev/pause is removed"
        return _stay(observed, reason=Reason.PAUSED, message=message)
    choice = Choice() if requests.pause else choose(observed)
    held, who = next((each for each in choice.held if each.uid == requests.reject), None), requests.who
    if held is not None:
        after = facts.with_outcome(status, held, outcome="Rejected", reason="requested", now=observed.now, by=who)
        return _left(after, reason=Reason.REJECTED, message=f"{held.name} was rejected by {who}")
    if choice.version is not None:
        return _begin(observed, choice, choice.version, status=status)
    if choice.compare is not None:
        return compare(observed, choice.compare)
    if former.problem is not None:
        return _stalled(observed, *former.problem)
    if choice.problem is not None and (observed.endpoint.spec.version or status.stable is None):
        return _stalled(observed, *choice.problem)
    if status.stable is None:
        name = observed.endpoint.metadata.name
        message = f"no proven version yet; apply a FineTuneJob with endpointRef {name}"
        return _stay(observed, reason=Reason.NO_VERSION, message=message)
    message = observed.served_by(status.stable)
    if choice.problem is None:
        return Draft(status=status, summary=Summary(state="Ready", reason=Reason.SERVING, message=message))
    reason, why = choice.problem
    message = f"{message}; {why}"
    news = (Event(type="Warning", reason=reason, message=why),) if message != status.message else ()
    summary = Summary(state="Ready", reason=reason, message=message)
    return Draft(status=status, summary=summary, waits_for=(why,), events=news)


def _begin(observed: ObservedEndpoint, choice: Choice, version: ModelVersion, *, status: ModelEndpointStatus) -> Draft:
    observed = _with_status(observed, status)
    name = version.metadata.name
    problem = unservable(endpoint=observed.endpoint, version=version, config=observed.config)
    if problem is not None:
        refused = facts.with_outcome(status, version.metadata, outcome="Rejected", reason=problem, now=observed.now)
        return _left(refused, reason=Reason.NOT_SERVABLE, message=f"{name} cannot be served: {problem}")
    plan = resolve(spec=observed.endpoint.spec, fast=choice.fast)
    after = facts.begun(observed=observed, version=version, plan=plan, passed_over=choice.passed_over)
    return _moved(after, reason=Reason.STARTING, message=f"starting the servers of {name}")


# -- a candidate ------------------------------------------------------------------------------------------------------


def _candidate(observed: ObservedEndpoint, state: Trying) -> Draft:
    candidate = state.candidate
    requests = read_requests(observed.endpoint.metadata.annotations)
    wishes: tuple[tuple[str, Outcome], ...] = ((requests.reject, "Rejected"), (requests.rollback, "RolledBack"))
    for wish, outcome in wishes:
        if wish == candidate.uid:
            after = facts.left_candidate(observed, state, outcome=outcome, reason="requested", by=requests.who)
            message = f"{candidate.name} was {PARTICIPLES[outcome]} by {requests.who}"
            return _left(after, reason=outcome, message=message)
    if observed.candidate_deleted:
        why = "its ModelVersion was deleted"
        after = facts.left_candidate(observed, state, outcome="Rejected", reason=why, by="a user")
        return _left(after, reason=Reason.REJECTED, message=f"{candidate.name} is withdrawn: {why}")
    newer = _newer(observed, state)
    if newer is not None:
        after = facts.left_candidate(observed, state, outcome="Superseded", reason=newer)
        return _left(after, reason=Reason.SUPERSEDED, message=f"{candidate.name} is superseded: {newer}")
    if isinstance(state, Starting):
        return _starting(observed, state, requests=requests)
    return _watched_candidate(observed, state, requests=requests)


def _newer(observed: ObservedEndpoint, state: Trying) -> str | None:
    """Why another version is wanted instead of the candidate; None: none is."""
    candidate, plan, pin = state.candidate, state.plan, observed.endpoint.spec.version
    if pin and pin == candidate.name:
        return None
    choice = choose(observed)
    if pin:
        return f"spec.version names {pin}" if choice.version or choice.compare else None
    if choice.version is None:
        return None
    current = observed.version(candidate.uid)
    if plan.supersede and not plan.fast and current is not None and order_of(choice.version) > order_of(current):
        return f"{choice.version.metadata.name} is newer"
    return None


def _starting(observed: ObservedEndpoint, state: Starting, *, requests: Requests) -> Draft:
    status, candidate, step, plan = observed.endpoint.status, state.candidate, state.step, state.plan
    taken = server_taken(observed, version_uid=candidate.uid)
    if taken:  # the time to become ready has not begun
        late = observed.now >= step.start_time + _TAKEN_EVERY
        anew = step.model_copy(update={"start_time": whole_second(observed.now)}) if late else step
        waiting = _with_status(observed, facts.changed(status, step=anew))
        return _stay(waiting, reason=Reason.NAME_TAKEN, message=f"{candidate.name} cannot be started: {taken[0]}")
    server = observed.servers.get(candidate.uid)
    if server is not None and server.failure is not None:
        after = facts.left_candidate(observed, state, outcome="Rejected", reason=server.failure)
        message = f"{candidate.name} cannot be served: {server.failure}"
        return _left(after, reason=Reason.CANDIDATE_FAILED, message=message)
    if server is not None and server.ready:
        if requests.pause:
            return _paused(observed, f"{candidate.name} is ready; paused")
        after = facts.entered_next(observed, state)
        message = f"{candidate.name} is ready{_promotion(after)}"
        return _moved(after, reason=Reason.CANDIDATE_READY, message=message)
    if server is not None and server.unschedulable is not None:
        message = f"{candidate.name} waits for a node: {server.unschedulable}"
        return _stay(observed, reason=Reason.WAITING_FOR_NODE, message=message)
    began = server.scheduled_since if server is not None and server.scheduled_since else step.start_time
    due = max(began, step.start_time) + timedelta(seconds=plan.progress_deadline_seconds)
    trouble = server.trouble if server is not None else None
    if observed.now >= due:
        reason = f"not ready within {plan.progress_deadline_seconds} s" + (f": {trouble}" if trouble else "")
        after = facts.left_candidate(observed, state, outcome="Rejected", reason=reason)
        return _left(after, reason=Reason.PROGRESS_DEADLINE_EXCEEDED, message=f"{candidate.name} was {reason}")
    message = f"starting the servers of {candidate.name}" + (f": {trouble}" if trouble else "")
    return _stay(observed, reason=Reason.STARTING, message=message, look_again=(due,))


def _watched_candidate(observed: ObservedEndpoint, state: Watched, *, requests: Requests) -> Draft:
    candidate, plan, doing, reason = state.candidate, state.plan, state.doing, PHASES[state.step.stage]
    judged = judge(observed=observed, plan=plan)
    if judged.regression is not None and plan.on_regression == "RollBack":
        outcome: Outcome = "Rejected" if isinstance(state, Shadowing) else "RolledBack"
        after = facts.left_candidate(observed, state, outcome=outcome, reason=judged.regression)
        return _left(after, reason=Reason.REGRESSION, message=f"{candidate.name} got worse: {judged.regression}")
    if judged.regression is not None and state.step.accepted is None:
        return _held(observed, state.step, version=candidate, judged=judged)
    if not _in_force(observed, plan):
        return _stay(observed, reason=reason, message=f"{doing}{_unheard(observed)}", judged=judged)
    progress, unready = _progress(observed, state, judged=judged), observed.unready(candidate)
    if unready and isinstance(progress, _GoOn):
        progress = _Wait(what=unready[0])
    elif unready and isinstance(progress, _Wait):
        progress = replace(progress, what=f"{unready[0]}, and {progress.what}")
    if requests.pause:
        return _paused(
            observed, f"{doing}; paused: no next step until the annotation finetune.dev/pause is removed", judged
        )
    if isinstance(progress, _Wait):
        again = (progress.until,) if progress.until is not None else ()
        message = f"{doing}; waits for {progress.what}{_unheard(observed)}"
        draft = _stay(observed, reason=reason, message=message, judged=judged, look_again=again)
        problem = shadow_problem(observed) if isinstance(state, Shadowing) else None
        return replace(draft, waits_for=(*unready, problem) if problem is not None else unready)
    if isinstance(progress, _GiveUp):
        after = facts.left_candidate(observed, state, outcome="Rejected", reason=f"inconclusive: {judged.missing}")
        return _left(after, reason=Reason.INCONCLUSIVE, message=f"{candidate.name} was not proven: {judged.missing}")
    after = facts.entered_next(observed, state, by=progress.by, doubt=progress.doubt)
    message = (
        f"{candidate.name} goes on, {progress.doubt}"
        if progress.doubt
        else f"{candidate.name} passed {state.step.name}"
    )
    draft = _moved(after, reason=Reason.STEP_PASSED, message=f"{message}{_promotion(after)}")
    return replace(draft, analysis=judged.state)


@dataclass(frozen=True, kw_only=True)
class _GoOn:
    """The candidate may take its next step."""

    by: ApprovalStatus | None = None
    """By this approval."""
    doubt: str | None = None
    """It does not show that the candidate is as good."""


@dataclass(frozen=True, kw_only=True)
class _GiveUp:
    """It was not proven in its time, and nobody is to be asked."""


@dataclass(frozen=True, kw_only=True)
class _Wait:
    """It may not yet."""

    what: str
    until: datetime | None = None


def _progress(observed: ObservedEndpoint, state: Watched, *, judged: Judgement) -> _GoOn | _GiveUp | _Wait:
    """What comes of the candidate, as far as what was seen of it tells."""
    step, now, uid, status = state.step, observed.now, state.candidate.uid, observed.endpoint.status
    ways = f"{to_approve(status, uid=uid)} or reject it"
    if isinstance(state, AwaitingApproval):
        asked = _Wait(what=f"approval (annotation finetune.dev/approve: {uid}); {ways}")
        return _GoOn(by=status.approval) if passes(status, uid=uid, hold=PROMOTION) else asked
    if step.accepted is not None:
        return _GoOn()
    if isinstance(state, Canary):
        soonest = step.start_time + timedelta(seconds=state.planned.min_duration_seconds)
        if now < soonest:
            return _Wait(what=f"{state.planned.min_duration_seconds} s to pass", until=soonest)
        return _GoOn() if judged.passed else _Wait(what=f"{step.needed} samples of each metric without a regression")
    problem = shadow_problem(observed)
    if judged.passed and problem is None:
        return _GoOn()
    missing = problem or f"{step.needed} pairs of each metric without a regression"
    if now < state.due:
        return _Wait(what=missing, until=state.due)
    if state.plan.on_inconclusive == "Reject":
        return _GiveUp()
    if state.plan.on_inconclusive == "Proceed":
        return _GoOn(doubt="not decided in shadow (rollout.onInconclusive: Proceed)")
    if status.approval is not None and passes(status, uid=uid, hold=SHADOW):
        return _GoOn(by=status.approval, doubt=f"not decided in shadow (approved by {status.approval.by})")
    over = "shadow.maxDurationSeconds is over (rollout.onInconclusive: Hold)"
    return _Wait(what=f"{missing}; {over}; {ways}")


def _held(observed: ObservedEndpoint, step: StepStatus, *, version: ServedVersion, judged: Judgement) -> Draft:
    """onRegression Pause: a person decides, after the regression was seen and not before."""
    status, name, uid, approval = observed.endpoint.status, version.name, version.uid, observed.endpoint.status.approval
    if approval is not None and step.held is not None and passes(status, uid=uid, hold=step.held):
        step = step.model_copy(update={"held": None, "accepted": judged.regression})
        version = doubted(version, f"{judged.regression} (accepted by {approval.by})")
        after = facts.changed(facts.with_doubt(status, version), step=step, approval=used(status, uid=uid))
        return _moved(after, reason=Reason.REGRESSION_ACCEPTED, message=f"{name} goes on although {judged.regression}")
    message = f"{name} got worse: {judged.regression}; {to_approve(status, uid=uid)}, reject it or roll it back"
    if step.held is None:
        given = approval is not None and approval.uid == uid
        step = step.model_copy(update={"held": judged.regression, "void_approval": given})
    seen = _with_status(observed, facts.changed(status, step=step))
    return _stay(seen, reason=Reason.REGRESSION, message=message, judged=judged)


# -- promotion and guard ----------------------------------------------------------------------------------------------


def _promoting(observed: ObservedEndpoint, state: Promoting) -> Draft:
    plan, stable, previous = state.plan, state.stable, state.previous
    if not _in_force(observed, plan):
        message = f"moving all requests to {stable.name}{_unheard(observed)}"
        return _stay(observed, reason=Reason.PROMOTING, message=message)
    if previous is None or plan.guard_seconds == 0:
        after = facts.settled(observed.endpoint.status)
        message = observed.served_by(stable)
        return _moved(after, reason=Reason.SERVING, message=message)
    message = f"{stable.name} serves; {previous.name} stays warm"
    return _moved(facts.guarding(observed, promoting=state.step), reason=Reason.GUARDING, message=message)


def _guard(observed: ObservedEndpoint, state: Guarding) -> Draft:
    plan, step, stable, previous = state.plan, state.step, state.stable, state.previous
    requests = read_requests(observed.endpoint.metadata.annotations)
    judged = judge(observed=observed, plan=plan)
    if previous is not None and stable.uid in (requests.rollback, requests.reject):
        after = facts.left_promoted(observed, bad=stable, good=previous, reason="requested", by=requests.who)
        return _left(after, reason=Reason.ROLLED_BACK, message=f"{stable.name} was rolled back by {requests.who}")
    if previous is not None and judged.regression is not None and plan.on_regression == "RollBack":
        after = facts.left_promoted(observed, bad=stable, good=previous, reason=judged.regression)
        return _left(after, reason=Reason.REGRESSION, message=f"{stable.name} got worse: {judged.regression}")
    if previous is not None and judged.regression is not None and step.accepted is None:
        return _held(observed, step, version=stable, judged=judged)
    due = step.start_time + timedelta(seconds=plan.guard_seconds)
    unready = observed.unready(stable) if previous is not None else ()  # until then it is the way back
    if observed.now < due or requests.pause or unready:
        warm = f", {previous.name} stays warm" if previous else ""
        message = f"{observed.served_by(stable)}; {stable.name} is watched{warm}"
        if requests.pause:
            return _paused(
                observed,
                f"{message}; paused: the guard does not end until the annotation finetune.dev/pause is removed",
                judged,
            )
        draft = _stay(observed, reason=Reason.GUARDING, message=message, judged=judged, look_again=(due,))
        return replace(draft, waits_for=unready)
    message = observed.served_by(stable)
    if judged.samples == 0:
        message = f"{message}; the guard ended without a request that could be judged"
    return _moved(facts.settled(observed.endpoint.status), reason=Reason.GUARD_PASSED, message=message)


def _rolling_back(observed: ObservedEndpoint, state: RollingBack) -> Draft:
    status = observed.endpoint.status
    if not _in_force(observed, state.plan):
        stable = status.stable.name if status.stable else "nothing"
        return _stay(
            observed, reason=Reason.ROLLING_BACK, message=f"moving all requests back to {stable}{_unheard(observed)}"
        )
    message = observed.served_by(status.stable) if status.stable else "nothing serves"
    return _moved(facts.settled(status), reason=Reason.SERVING, message=message)


# -- restore ----------------------------------------------------------------------------------------------------------


def _adopt(observed: ObservedEndpoint) -> Draft:
    """There are routes and no status: a backup was restored. What serves goes on to serve."""
    after = adopted(observed)
    if after is None:
        names = (
            ", ".join(sorted(variant.name for variant in observed.routes.variants.values())) if observed.routes else ""
        )
        message = (
            f"the routes name {names}, and no ModelVersion of these exists; restore the ModelVersions, or delete the "
            "routes ConfigMap to begin anew"
        )
        return _stalled(observed, Reason.CANNOT_ADOPT, message)
    requests = read_requests(observed.endpoint.metadata.annotations)
    if requests.approve:  # what for was lost with the status
        spent = ApprovalStatus(uid=requests.approve, by=requests.who, hold="what was before the restore", used=True)
        after = facts.changed(after, approval=spent)
    name = after.stable.name if after.stable else ""
    return _moved(after, reason=Reason.ADOPTED, message=f"{name} serves as the restored routes say")


def _promotion(after: ModelEndpointStatus) -> str:
    """That the next step is the promotion, and of what."""
    if after.candidate is not None or after.stable is None:
        return ""
    why = f", not proven: {after.stable.unproven}" if after.stable.unproven else ""
    return f" and is promoted{why}"


# -- drafts -----------------------------------------------------------------------------------------------------------


def _unheard(observed: ObservedEndpoint) -> str:
    """Gateways that nothing was heard from lately: no rollout gets on without them."""
    silent = observed.gateways.silent
    return f"; nothing is heard from {', '.join(silent)}: it must reach the operator's door" if silent else ""


def _in_force(observed: ObservedEndpoint, plan: RolloutPlan) -> bool:
    """Whether all gateways serve the routes that the recorded facts call for."""
    wanted = routes_of(observed, status=observed.endpoint.status, plan=plan, epoch=max(1, observed.epoch))
    if wanted is None or observed.routes is None or not same_content(wanted, observed.routes):
        return False
    return observed.is_followed


def _moved(status: ModelEndpointStatus, *, reason: str, message: str) -> Draft:
    summary = Summary(state="Reconciling", reason=reason, message=message)
    return Draft(status=status, summary=summary, events=(Event(type="Normal", reason=reason, message=message),))


def _left(status: ModelEndpointStatus, *, reason: str, message: str) -> Draft:
    summary = Summary(state="Reconciling", reason=reason, message=message)
    return Draft(status=status, summary=summary, events=(Event(type="Warning", reason=reason, message=message),))


def _stay(
    observed: ObservedEndpoint,
    *,
    reason: str,
    message: str,
    judged: Judgement = _NOTHING_SEEN,
    look_again: tuple[datetime, ...] = (),
) -> Draft:
    return Draft(
        status=_with_rows(observed.endpoint.status, judged),
        summary=Summary(state="Reconciling", reason=reason, message=message),
        look_again=look_again,
        analysis=judged.state,
    )


def _paused(observed: ObservedEndpoint, message: str, judged: Judgement = _NOTHING_SEEN) -> Draft:
    return _stay(observed, reason=Reason.PAUSED, message=message, judged=judged)


def _stalled(observed: ObservedEndpoint, reason: str, message: str) -> Draft:
    return Draft(status=observed.endpoint.status, summary=Summary(state="Stalled", reason=reason, message=message))


def _with_rows(status: ModelEndpointStatus, judged: Judgement) -> ModelEndpointStatus:
    if status.step is None or not judged.rows:
        return status
    step = status.step.model_copy(update={"samples": judged.samples})
    return facts.changed(status, step=step, analysis=judged.rows)


def _with_status(observed: ObservedEndpoint, status: ModelEndpointStatus) -> ObservedEndpoint:
    return replace(observed, endpoint=observed.endpoint.model_copy(update={"status": status}))
