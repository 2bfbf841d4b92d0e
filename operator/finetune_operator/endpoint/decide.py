"""What a ModelEndpoint should do next: a judgement on what was observed, and on nothing else.

    Empty -> (first version ready) -> Idle
    Idle -> Shadowing -> Canary -> AwaitingApproval -> Promoting -> Guarding -> Idle

Paused is an answer to a person's wish, or to a regression with onRegression Pause; RollingBack comes from everywhere
after Idle. Each look changes recorded facts by at most one step (facts.py). Routes and servers follow from the facts
that were recorded (children.py), at the look after: whoever is killed between any two writes leaves nothing undone.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api.base import size_problem
from finetune_api.modelendpoint import ModelEndpointStatus, Outcome
from finetune_operator.controller import Event
from finetune_operator.endpoint import facts
from finetune_operator.endpoint.adopt import adopted
from finetune_operator.endpoint.children import children_of, outdated, retired, server_taken, unwanted
from finetune_operator.endpoint.choose import PARTICIPLES, Choice, choose, choose_former, order_of
from finetune_operator.endpoint.comparing import compare
from finetune_operator.endpoint.comparison import stale
from finetune_operator.endpoint.decision import Draft, EndpointDecision
from finetune_operator.endpoint.finish import finish
from finetune_operator.endpoint.judge import Judgement, judge, shadow_problem
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.plan import RolloutPlan, read_plan, resolve
from finetune_operator.endpoint.requests import Requests, read_requests
from finetune_operator.endpoint.routing import routes_of, same_content
from finetune_operator.endpoint.serving import unservable
from finetune_operator.job.conditions import Summary
from finetune_operator.job.times import whole_second

_TAKEN_EVERY = timedelta(seconds=60)
"""How often it is written that a version still waits for a name."""
_NOTHING_SEEN = Judgement(state=None, rows=[], trip=None)


def decide(observed: ObservedEndpoint) -> EndpointDecision:
    """The next step of an endpoint. The same observation gives the same answer, whoever asks and how often."""
    if observed.endpoint.metadata.deletion_timestamp is not None:
        return EndpointDecision()  # its children go by their owner references
    if observed.routes_problem is not None:
        return finish(observed=observed, draft=_stalled(observed, "RoutesUnreadable", observed.routes_problem))
    draft = _draft(observed)
    choice = choose(observed)
    draft = replace(draft, status=facts.changed(draft.status, held=choice.held))
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
    plan: RolloutPlan | None = None
    if status.plan is not None:
        read = read_plan(status.plan)
        if isinstance(read, str):
            message = f"{read}; install the version of the operator that began this rollout, or a newer one"
            return _stalled(observed, "PlanUnsupported", message)
        plan = read
    if status.step is None or plan is None:
        return _idle(observed)
    stage = status.step.stage
    if stage == "RollingBack":
        return _rolling_back(observed, plan)
    if stage == "Promoting":
        return _promoting(observed, plan)
    if stage == "Guard":
        return _guard(observed, plan)
    return _candidate(observed, plan)


# -- nothing under way ------------------------------------------------------------------------------------------------


def _idle(observed: ObservedEndpoint) -> Draft:
    status = observed.endpoint.status
    too_large = size_problem(observed.endpoint.spec)
    if too_large is not None:
        return _stalled(observed, "TooLarge", too_large)
    requests = read_requests(observed.endpoint.metadata.annotations)
    if status.stable is not None and requests.rollback == status.stable.uid:
        return _back(observed, requests)
    if requests.pause:
        return _stay(observed, reason="Paused", message="paused: no version is tried until the annotation is removed")
    choice = choose(observed)
    if choice.held is not None and requests.reject == choice.held.uid:
        name, uid, now, who = choice.held.name, choice.held.uid, observed.now, requests.who
        after = facts.with_outcome(status, name=name, uid=uid, outcome="Rejected", reason="requested", now=now, by=who)
        return _left(after, reason="Rejected", message=f"{name} was rejected by {who}")
    if choice.version is not None:
        return _begin(observed, choice, status=status)
    if choice.compare is not None:
        return compare(observed, choice.compare)
    if choice.problem is not None and (observed.endpoint.spec.version or status.stable is None):
        return _stalled(observed, *choice.problem)
    if status.stable is None:
        name = observed.endpoint.metadata.name
        message = f"no proven version yet; apply a FineTuneJob with endpointRef {name}"
        return _stay(observed, reason="NoVersion", message=message)
    message = observed.served_by(status.stable)
    if choice.problem is None:
        return Draft(status=status, summary=Summary(state="Ready", reason="Serving", message=message))
    reason, why = choice.problem
    message = f"{message}; {why}"
    news = (Event(type="Warning", reason=reason, message=why),) if message != status.message else ()
    return Draft(status=status, summary=Summary(state="Ready", reason=reason, message=message), events=news)


def _back(observed: ObservedEndpoint, requests: Requests) -> Draft:
    """Leave the stable version for the one before it, which is started first."""
    status = observed.endpoint.status
    choice = choose_former(observed)
    if choice.version is None or status.stable is None:
        reason, message = choice.problem or ("NothingToRollBackTo", "there is no version to go back to")
        return _stalled(observed, reason, message)
    status = facts.with_outcome(
        status,
        name=status.stable.name,
        uid=status.stable.uid,
        outcome="RolledBack",
        reason="requested",
        now=observed.now,
        by=requests.who,
    )
    return _begin(observed, choice, status=status)


def _begin(observed: ObservedEndpoint, choice: Choice, *, status: ModelEndpointStatus) -> Draft:
    assert choice.version is not None  # noqa: S101 - the callers have looked
    observed = _with_status(observed, status)
    problem = unservable(endpoint=observed.endpoint, version=choice.version, config=observed.config)
    if problem is not None:
        metadata = choice.version.metadata
        refused = facts.with_outcome(
            status, name=metadata.name, uid=metadata.uid, outcome="Rejected", reason=problem, now=observed.now
        )
        return _left(refused, reason="NotServable", message=f"{metadata.name} cannot be served: {problem}")
    plan = resolve(spec=observed.endpoint.spec, fast=choice.fast)
    after = facts.begun(observed=observed, version=choice.version, plan=plan, passed_over=choice.passed_over)
    name = choice.version.metadata.name
    return _moved(after, reason="Starting", message=f"starting the servers of {name}")


# -- a candidate ------------------------------------------------------------------------------------------------------


def _candidate(observed: ObservedEndpoint, plan: RolloutPlan) -> Draft:
    status = observed.endpoint.status
    candidate, step = status.candidate, status.step
    assert candidate is not None  # noqa: S101 - these stages have one
    assert step is not None  # noqa: S101
    requests = read_requests(observed.endpoint.metadata.annotations)
    wishes: tuple[tuple[str, Outcome], ...] = ((requests.reject, "Rejected"), (requests.rollback, "RolledBack"))
    for wish, outcome in wishes:
        if wish == candidate.uid:
            after = facts.left_candidate(observed=observed, outcome=outcome, reason="requested", by=requests.who)
            message = f"{candidate.name} was {PARTICIPLES[outcome]} by {requests.who}"
            return _left(after, reason=outcome, message=message)
    newer = _newer(observed, plan)
    if newer is not None:
        after = facts.left_candidate(observed=observed, outcome="Superseded", reason=newer)
        return _left(after, reason="Superseded", message=f"{candidate.name} is superseded: {newer}")
    if step.stage == "Starting":
        return _starting(observed, plan, requests=requests)
    return _watched_candidate(observed, plan, requests=requests)


def _newer(observed: ObservedEndpoint, plan: RolloutPlan) -> str | None:
    """Why another version is wanted instead of the candidate; None: none is."""
    candidate, pin = observed.endpoint.status.candidate, observed.endpoint.spec.version
    if candidate is None or (pin and pin == candidate.name):
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


def _starting(observed: ObservedEndpoint, plan: RolloutPlan, *, requests: Requests) -> Draft:
    status = observed.endpoint.status
    candidate, step = status.candidate, status.step
    assert candidate is not None  # noqa: S101
    assert step is not None  # noqa: S101
    taken = server_taken(observed, version_uid=candidate.uid)
    if taken:  # the time to become ready has not begun
        late = observed.now >= step.start_time + _TAKEN_EVERY
        anew = step.model_copy(update={"start_time": whole_second(observed.now)}) if late else step
        waiting = _with_status(observed, facts.changed(status, step=anew))
        return _stay(waiting, reason="NameTaken", message=f"{candidate.name} cannot be started: {taken[0]}")
    server = observed.servers.get(candidate.uid)
    if server is not None and server.failure is not None:
        after = facts.left_candidate(observed=observed, outcome="Rejected", reason=server.failure)
        message = f"{candidate.name} cannot be served: {server.failure}"
        return _left(after, reason="CandidateFailed", message=message)
    if server is not None and server.ready:
        if requests.pause:
            return _paused(observed, f"{candidate.name} is ready; paused")
        after = facts.entered_next(observed=observed, plan=plan)
        return _moved(after, reason="CandidateReady", message=f"{candidate.name} is ready")
    if server is not None and server.unschedulable is not None:
        message = f"{candidate.name} waits for a node: {server.unschedulable}"
        return _stay(observed, reason="WaitingForNode", message=message)
    began = server.scheduled_since if server is not None and server.scheduled_since else step.start_time
    due = max(began, step.start_time) + timedelta(seconds=plan.progress_deadline_seconds)
    trouble = server.trouble if server is not None else None
    if observed.now >= due:
        reason = f"not ready within {plan.progress_deadline_seconds} s" + (f": {trouble}" if trouble else "")
        after = facts.left_candidate(observed=observed, outcome="Rejected", reason=reason)
        return _left(after, reason="ProgressDeadlineExceeded", message=f"{candidate.name} was {reason}")
    message = f"starting the servers of {candidate.name}" + (f": {trouble}" if trouble else "")
    return _stay(observed, reason="Starting", message=message, look_again=(due,))


def _watched_candidate(observed: ObservedEndpoint, plan: RolloutPlan, *, requests: Requests) -> Draft:
    status = observed.endpoint.status
    candidate, step = status.candidate, status.step
    assert candidate is not None  # noqa: S101
    assert step is not None  # noqa: S101
    judged = judge(observed=observed, plan=plan)
    approved = requests.approve == candidate.uid
    if judged.regression is not None and plan.on_regression == "RollBack":
        outcome: Outcome = "Rejected" if step.stage == "Shadow" else "RolledBack"
        after = facts.left_candidate(observed=observed, outcome=outcome, reason=judged.regression)
        return _left(after, reason="Regression", message=f"{candidate.name} got worse: {judged.regression}")
    if judged.regression is not None and step.accepted is None:
        return _held(observed, name=candidate.name, judged=judged, approved=approved)
    if not _in_force(observed, plan):
        return _stay(observed, reason=_REASON[step.stage], message=_what(observed), judged=judged)
    ready, missing, due = _may_go_on(observed, plan, judged=judged, approved=approved)
    if requests.pause:
        return _paused(observed, f"{_what(observed)}; paused: no next step until the annotation is removed", judged)
    if missing == "reject":
        after = facts.left_candidate(observed=observed, outcome="Rejected", reason=f"inconclusive: {judged.missing}")
        return _left(after, reason="Inconclusive", message=f"{candidate.name} was not proven: {judged.missing}")
    if not ready:
        message = f"{_what(observed)}; waits for {missing}"
        again = (due,) if due is not None else ()
        return _stay(observed, reason=_REASON[step.stage], message=message, judged=judged, look_again=again)
    after = facts.entered_next(observed=observed, plan=plan)
    draft = _moved(after, reason="StepPassed", message=f"{candidate.name} passed {step.name}")
    return Draft(status=draft.status, summary=draft.summary, events=draft.events, analysis=judged.state)


def _may_go_on(
    observed: ObservedEndpoint, plan: RolloutPlan, *, judged: Judgement, approved: bool
) -> tuple[bool, str, datetime | None]:
    """Whether the candidate may take its next step; else what it waits for ("reject": no longer), and until when."""
    status = observed.endpoint.status
    step = status.step
    assert step is not None  # noqa: S101
    if step.stage == "Approval":
        uid = status.candidate.uid if status.candidate else ""
        return approved, f"approval (annotation finetune.dev/approve: {uid})", None
    if step.accepted is not None:
        return True, "", None
    if step.stage == "Canary":
        soonest = step.start_time + timedelta(seconds=plan.steps[step.index].min_duration_seconds)
        if observed.now < soonest:
            return False, f"{plan.steps[step.index].min_duration_seconds} s to pass", soonest
        return judged.passed, f"{step.needed} samples of each metric without a regression", None
    assert plan.shadow is not None  # noqa: S101 - there is no shadow stage without it
    problem = shadow_problem(observed)
    if judged.passed and problem is None:
        return True, "", None
    due = step.start_time + timedelta(seconds=plan.shadow.max_duration_seconds)
    missing = problem or f"{step.needed} pairs of each metric without a regression"
    if observed.now < due:
        return False, missing, due
    if plan.on_inconclusive == "Hold":
        return approved, f"{missing}; shadow.maxDurationSeconds is over: approve or reject it", None
    return plan.on_inconclusive == "Proceed", "reject" if plan.on_inconclusive == "Reject" else missing, None


def _held(observed: ObservedEndpoint, *, name: str, judged: Judgement, approved: bool) -> Draft:
    """onRegression Pause: a person decides, after the regression was seen and not before."""
    step = observed.endpoint.status.step
    assert step is not None  # noqa: S101 - something is under way
    if step.held is None:
        step = step.model_copy(update={"held": judged.regression, "void_approval": approved})
    elif step.void_approval and not approved:
        step = step.model_copy(update={"void_approval": False})
    elif approved and not step.void_approval:
        step = step.model_copy(update={"held": None, "accepted": judged.regression})
        after = facts.changed(observed.endpoint.status, step=step)
        return _moved(after, reason="RegressionAccepted", message=f"{name} goes on although {judged.regression}")
    again = "remove the annotation and " if step.void_approval else ""
    message = f"{name} got worse: {judged.regression}; {again}approve it, reject it or roll it back"
    held = _with_status(observed, facts.changed(observed.endpoint.status, step=step))
    return _stay(held, reason="Regression", message=message, judged=judged)


# -- promotion and guard ----------------------------------------------------------------------------------------------


def _promoting(observed: ObservedEndpoint, plan: RolloutPlan) -> Draft:
    status = observed.endpoint.status
    assert status.stable is not None  # noqa: S101 - promoted() sets it
    if not _in_force(observed, plan):
        message = f"moving all requests to {status.stable.name}"
        return _stay(observed, reason="Promoting", message=message)
    if status.previous is None or plan.guard_seconds == 0:
        after = facts.settled(status)
        message = observed.served_by(status.stable)
        return _moved(after, reason="Serving", message=message)
    message = f"{status.stable.name} serves; {status.previous.name} stays warm"
    return _moved(facts.guarding(observed=observed), reason="Guarding", message=message)


def _guard(observed: ObservedEndpoint, plan: RolloutPlan) -> Draft:
    status = observed.endpoint.status
    stable, previous, step = status.stable, status.previous, status.step
    assert stable is not None  # noqa: S101
    assert step is not None  # noqa: S101
    requests = read_requests(observed.endpoint.metadata.annotations)
    judged = judge(observed=observed, plan=plan)
    if previous is not None and stable.uid in (requests.rollback, requests.reject):
        after = facts.left_promoted(observed=observed, reason="requested", by=requests.who)
        return _left(after, reason="RolledBack", message=f"{stable.name} was rolled back by {requests.who}")
    if previous is not None and judged.regression is not None and plan.on_regression == "RollBack":
        after = facts.left_promoted(observed=observed, reason=judged.regression)
        return _left(after, reason="Regression", message=f"{stable.name} got worse: {judged.regression}")
    if previous is not None and judged.regression is not None and step.accepted is None:
        return _held(observed, name=stable.name, judged=judged, approved=requests.approve == stable.uid)
    due = step.start_time + timedelta(seconds=plan.guard_seconds)
    if observed.now < due or requests.pause:
        warm = f", {previous.name} stays warm" if previous else ""
        message = f"{observed.served_by(stable)}; {stable.name} is watched{warm}"
        if requests.pause:
            return _paused(observed, f"{message}; paused: the guard does not end", judged)
        return _stay(observed, reason="Guarding", message=message, judged=judged, look_again=(due,))
    message = observed.served_by(stable)
    if judged.samples == 0:
        message = f"{message}; the guard ended without a request that could be judged"
    return _moved(facts.settled(status), reason="GuardPassed", message=message)


def _rolling_back(observed: ObservedEndpoint, plan: RolloutPlan) -> Draft:
    status = observed.endpoint.status
    if not _in_force(observed, plan):
        stable = status.stable.name if status.stable else "nothing"
        return _stay(observed, reason="RollingBack", message=f"moving all requests back to {stable}")
    message = observed.served_by(status.stable) if status.stable else "nothing serves"
    return _moved(facts.settled(status), reason="Serving", message=message)


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
        return _stalled(observed, "CannotAdopt", message)
    name = after.stable.name if after.stable else ""
    return _moved(after, reason="Adopted", message=f"{name} serves as the restored routes say")


# -- drafts -----------------------------------------------------------------------------------------------------------


def _in_force(observed: ObservedEndpoint, plan: RolloutPlan) -> bool:
    """Whether all gateways serve the routes that the recorded facts call for."""
    wanted = routes_of(
        endpoint=observed.endpoint,
        status=observed.endpoint.status,
        plan=plan,
        epoch=max(1, observed.epoch),
        server_urls=observed.server_urls,
    )
    if wanted is None or observed.routes is None or not same_content(wanted, observed.routes):
        return False
    return observed.gateways.all_acknowledge(observed.epoch)


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
    return _stay(observed, reason="Paused", message=message, judged=judged)


def _stalled(observed: ObservedEndpoint, reason: str, message: str) -> Draft:
    return Draft(status=observed.endpoint.status, summary=Summary(state="Stalled", reason=reason, message=message))


def _with_rows(status: ModelEndpointStatus, judged: Judgement) -> ModelEndpointStatus:
    if status.step is None or not judged.rows:
        return status
    step = status.step.model_copy(update={"samples": judged.samples})
    return facts.changed(status, step=step, analysis=judged.rows)


def _with_status(observed: ObservedEndpoint, status: ModelEndpointStatus) -> ObservedEndpoint:
    return replace(observed, endpoint=observed.endpoint.model_copy(update={"status": status}))


def _what(observed: ObservedEndpoint) -> str:
    """What is going on with the candidate, in words that stay the same while it does."""
    status = observed.endpoint.status
    step, name = status.step, status.candidate.name if status.candidate else "the candidate"
    assert step is not None  # noqa: S101
    if step.stage == "Shadow":
        return f"{name} answers copies of requests"
    if step.stage == "Canary":
        return f"{name} answers requests of step {step.name} ({step.percent:g} %)"
    return f"{name} has passed all steps"


_REASON = {"Starting": "Starting", "Shadow": "Shadowing", "Canary": "Canary", "Approval": "AwaitingApproval"}
