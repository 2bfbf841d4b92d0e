"""What is going on at an endpoint, in plain words. Pure: the object in, sentences out.

The stages and what ends each: endpoint/decide.py. Each function here answers for one of them, the first that knows the
state wins.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api.base import Condition
from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.cli import words
from finetune_operator.cli.explain_watched import held, watched
from finetune_operator.cli.explanation import Explanation, Release, Shell
from finetune_operator.cli.rollout_words import (
    Rollout,
    answered_by,
    clients_of,
    gateways_behind,
    give_up,
    resume,
    rolls_back,
)
from finetune_operator.endpoint.choose import PARTICIPLES
from finetune_operator.endpoint.plan import RolloutPlan, read_plan
from finetune_operator.endpoint.requests import read_requests
from finetune_operator.endpoint.void_requests import void_decisions


def explain_endpoint(endpoint: ModelEndpoint, *, now: datetime, shell: Shell) -> Explanation:
    """What happens, on how many samples, what it waits for, and what would release it."""
    status = endpoint.status
    read = read_plan(status.plan) if status.plan is not None else None
    rollout = Rollout(
        endpoint=endpoint,
        plan=read if isinstance(read, RolloutPlan) else None,
        requests=read_requests(endpoint.metadata.annotations),
        now=now,
        shell=shell,
    )
    for part in (_unseen, _stalled, _idle, _rolling_back, _starting, _promoting, held, watched, _guard):
        explanation = part(rollout)
        if explanation is not None:
            return _complete(explanation, rollout=rollout)
    message = status.message or "nothing is known"
    return _complete(Explanation(now=(message,)), rollout=rollout)


def _complete(explanation: Explanation, *, rollout: Rollout) -> Explanation:
    """With what is said of every state."""
    decisions = tuple(f"{rollout.shell.program} {verb} " for verb in ("approve", "reject", "rollback"))
    rights: tuple[str, ...] = ()
    if not rollout.shell.local and any(each.command.startswith(decisions) for each in explanation.release):
        rights = (
            "approve, reject and rollback need the verb approve on modelendpoints (ClusterRole finetune-approve)",
        )
    return replace(explanation, headline=_headline(rollout.endpoint), notes=(*_notes(rollout), *rights))


def _headline(endpoint: ModelEndpoint) -> str:
    status = endpoint.status
    phase = status.phase or "not looked at yet"
    serves = f"serves {status.stable.name}" if status.stable is not None else "serves no version yet"
    tries = f" and tries {status.candidate.name}" if status.candidate is not None else ""
    return f"ModelEndpoint {endpoint.metadata.name} {serves}{tries} ({phase})"


# -- nothing under way ------------------------------------------------------------------------------------------------


def _unseen(rollout: Rollout) -> Explanation | None:
    if rollout.endpoint.metadata.deletion_timestamp is not None:
        return Explanation(now=("it is being deleted, and its servers and gateway with it",))
    if rollout.status.observed_generation is not None:
        return None
    return Explanation(
        now=("no operator has looked at it yet",),
        waits_for=(_operator(rollout),),
        release=(_doctor(rollout),),
    )


def _operator(rollout: Rollout) -> str:
    if rollout.shell.local:
        return "`finetune up -f FILE` to run: without it nothing works on endpoints in this folder"
    return "the operator: it looks within a second where it runs and watches this namespace"


def _doctor(rollout: Rollout) -> Release:
    if rollout.shell.local:
        return Release(command=rollout.shell.finetune("up", "-f", "FILE"), effect="works on the endpoint of that file")
    return Release(command=rollout.shell.finetune("doctor"), effect="says whether the operator runs, and what it lacks")


def _stalled(rollout: Rollout) -> Explanation | None:
    """Nothing moves until somebody changes something; the operator's own message says what."""
    stalled = rollout.condition("Stalled")
    if stalled is None or stalled.status != "True":
        return None
    stable = rollout.status.stable
    serving = f"{stable.name} serves as before" if stable is not None else "nothing is served"
    return Explanation(
        now=(f"stalled ({stalled.reason}): {serving}",),
        waits_for=(stalled.message, *_whose_turn(stalled)),
        release=_way_out(rollout, stalled),
    )


def _whose_turn(stalled: Condition) -> tuple[str, ...]:
    administrators = ("PlanUnsupported", "NotSupported", "NoGatewayImage", "RoutesUnreadable", "CannotAdopt")
    return ("this is for whoever runs the operator",) if stalled.reason in administrators else ()


def _way_out(rollout: Rollout, stalled: Condition) -> tuple[Release, ...]:
    name, shell = rollout.name, rollout.shell
    pinned = ("VersionNotFound", "VersionFailedBefore", "NotProven", "WrongTask", "ComparisonFailed")
    if stalled.reason in pinned and rollout.endpoint.spec.version:
        versions = Release(command=shell.finetune("get", "versions"), effect="lists the versions that there are")
        return versions, _unpin(rollout)
    if stalled.reason == "NothingToRollBackTo":
        withdraw = Release(
            command=shell.kubectl("annotate", "modelendpoint", name, "finetune.dev/rollback-"),
            effect="withdraws the request to leave the version",
        )
        return () if shell.local else (withdraw,)
    return ()


def _unpin(rollout: Rollout) -> Release:
    effect = "leaves the choice to the operator: the newest proven version"
    if rollout.shell.local:
        return Release(
            command=rollout.shell.finetune("up", "-f", "FILE"), effect=f'with spec.version "" in it, {effect}'
        )
    patch = '{"spec":{"version":""}}'
    command = rollout.shell.kubectl("patch", "modelendpoint", rollout.name, "--type=merge", "-p", patch)
    return Release(command=command, effect=effect)


def _idle(rollout: Rollout) -> Explanation | None:
    status, requests = rollout.status, rollout.requests
    if status.step is not None:
        return None
    stable = status.stable
    if stable is None and not requests.pause:
        return Explanation(
            now=("no version has been proven for it so far",),
            waits_for=(
                f"a ModelVersion that passed its evaluation and names this endpoint: a FineTuneJob with endpointRef "
                f"{rollout.name} makes one",
            ),
            by_itself=("the first proven version serves as soon as it is ready: there is nothing to compare it with",),
            release=(
                Release(
                    command=rollout.shell.finetune("run", "-f", "JOB.yaml")
                    if rollout.shell.local
                    else rollout.shell.kubectl("apply", "-f", "JOB.yaml"),
                    effect=f"trains and evaluates a version, with spec.endpointRef.name {rollout.name}",
                ),
            ),
        )
    serving = answered_by(rollout)
    if requests.pause:
        waits = (f"finetune.dev/pause to be removed: {requests.who} paused it",)
        return Explanation(now=(f"{serving}; no version is tried",), waits_for=waits, release=(resume(rollout),))
    # What stands in the way of a version that waits is all that the message has beyond what serves.
    problem = (status.message or "").partition("; ")[2]
    if rollout.reason == "Comparing":
        return Explanation(
            now=(serving, problem),
            waits_for=("the evaluation to end: the version was proven against something else than what is stable now",),
            by_itself=("if it passes, its servers are started and the rollout begins; else it is rejected",),
            release=_leave_stable(rollout),
        )
    return Explanation(
        now=(serving,),
        waits_for=(problem,) if problem else (),
        by_itself=("a newer proven version is tried as soon as there is one",) if not problem else (),
        release=_leave_stable(rollout),
    )


def _leave_stable(rollout: Rollout) -> tuple[Release, ...]:
    stable = rollout.status.stable
    former = [
        each for each in rollout.status.versions if each.outcome == "Promoted" and stable and each.uid != stable.uid
    ]
    if stable is None or not former:
        return ()
    effect = f"leaves {stable.name} for the version that was stable before, whose servers are started first"
    return (Release(command=rollout.shell.finetune("rollback", rollout.name), effect=effect),)


# -- stages without statistics ----------------------------------------------------------------------------------------


def _rolling_back(rollout: Rollout) -> Explanation | None:
    step, status = rollout.status.step, rollout.status
    if step is None or step.stage != "RollingBack":
        return None
    last = status.versions[-1] if status.versions else None
    why = f" after {last.name} was {PARTICIPLES.get(last.outcome, last.outcome.lower())}: {last.reason}" if last else ""
    return Explanation(
        now=(f"all requests move back to {clients_of(status)}{why}",),
        waits_for=gateways_behind(rollout) or ("the gateways to take the new routes: less than a second as a rule",),
        by_itself=("the servers of the version that was left are removed once no gateway can send requests to it",),
    )


def _starting(rollout: Rollout) -> Explanation | None:
    status, plan = rollout.status, rollout.plan
    step, candidate = status.step, status.candidate
    if step is None or step.stage != "Starting" or candidate is None:
        return None
    reason = rollout.reason
    message = status.message or ""
    next_ = f"then: {rollout.next_stage()}" if status.stable else "then it serves all requests: there is no other"
    if reason == "Paused":
        return Explanation(
            now=(f"the servers of {candidate.name} are ready; no client is sent to them",),
            waits_for=(f"finetune.dev/pause to be removed: {rollout.requests.who} paused it",),
            release=(resume(rollout), give_up(rollout)),
        )
    if reason == "WaitingForNode":
        return Explanation(
            now=(f"{candidate.name} cannot start: {message.partition(': ')[2] or message}",),
            waits_for=(
                "a node with room for it (whoever runs the cluster: add one, or free one); this wait has no time limit",
            ),
            by_itself=(next_,),
            release=(give_up(rollout),),
        )
    deadline = ""
    if plan is not None:
        due = step.start_time + timedelta(seconds=plan.progress_deadline_seconds)
        # The time without a node does not count, and the status does not tell when a pod got one.
        deadline = f"not ready by {due:%H:%M:%S} UTC, or later where it had to wait for a node: it is rejected"
    return Explanation(
        now=(message or f"starting the servers of {candidate.name}",),
        waits_for=(f"{candidate.name} to answer a first request",),
        by_itself=tuple(each for each in (next_, deadline) if each),
        release=(give_up(rollout),),
    )


def _promoting(rollout: Rollout) -> Explanation | None:
    step, stable, plan = rollout.status.step, rollout.status.stable, rollout.plan
    if step is None or step.stage != "Promoting" or stable is None:
        return None
    follows = "nothing is left to do"
    if rollout.status.previous is not None and plan is not None and plan.guard_seconds:
        follows = f"it is watched for {words.seconds(plan.guard_seconds)}; {rollout.status.previous.name} stays warm"
    return Explanation(
        now=(f"{stable.name} is promoted: all requests move to it",),
        waits_for=gateways_behind(rollout) or ("the gateways to take the new routes: less than a second as a rule",),
        by_itself=(f"then: {follows}",),
    )


def _guard(rollout: Rollout) -> Explanation | None:
    status, plan, now = rollout.status, rollout.plan, rollout.now
    step, stable, previous = status.step, status.stable, status.previous
    if step is None or step.stage != "Guard" or stable is None or plan is None:
        return None
    due = step.start_time + timedelta(seconds=plan.guard_seconds)
    left = max(0.0, (due - now).total_seconds())
    warm = f"; {previous.name} stays warm" if previous is not None else ""
    back = Release(
        command=rollout.shell.finetune("rollback", rollout.name),
        effect=f"all requests go back to {previous.name if previous else 'the version before'} at once",
    )
    paused = rollout.requests.pause
    ends = f"the guard ends at {due:%H:%M:%S} UTC, in {words.seconds(left)}: {stable.name} stays and the rest goes"
    return Explanation(
        now=(f"{stable.name} was promoted and is watched{warm}", answered_by(rollout)),
        samples=rollout.sample_lines(),
        waits_for=(f"finetune.dev/pause to be removed: {rollout.requests.who} paused it, and the guard does not end",)
        if paused
        else (f"{words.seconds(left)} of the guard to pass without a regression",),
        by_itself=(*(() if paused else (ends,)), rolls_back(rollout)),
        release=(*((resume(rollout),) if paused else ()), back),
    )


# -- notes ------------------------------------------------------------------------------------------------------------


def _notes(rollout: Rollout) -> list[str]:
    status, endpoint = rollout.status, rollout.endpoint
    found = []
    available = rollout.condition("Available")
    if status.stable is not None and available is not None and available.status != "True":
        found.append(f"clients may get no answer now: {available.message}")
    generation = endpoint.metadata.generation
    if status.observed_generation is not None and generation is not None and status.observed_generation < generation:
        found.append("the operator has not seen the newest change of the spec yet")
    found += [f"finetune.dev/{verb} is void: {why}" for verb, why in void_decisions(endpoint).items()]
    last = status.versions[-1] if status.versions else None
    if status.step is None and last is not None and last.outcome in PARTICIPLES:
        found.append(
            f"the last one tried, {last.name}, was {PARTICIPLES[last.outcome]} by {last.by} at"
            f" {last.time:%Y-%m-%d %H:%M:%S} UTC: {last.reason}; it is not tried again"
        )
    return found
