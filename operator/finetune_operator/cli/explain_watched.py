"""A candidate under the live statistics, or a version that a regression holds: what was seen, and what is missing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from finetune_operator.cli import words
from finetune_operator.cli.explanation import Explanation, Release, at_this_rate
from finetune_operator.cli.rollout_words import (
    Rollout,
    clients_of,
    gateways_behind,
    give_up,
    go_on,
    resume,
    rolls_back,
    step_words,
)


def held(rollout: Rollout) -> Explanation | None:
    """A regression was proven, and onRegression is Pause."""
    status, requests = rollout.status, rollout.requests
    step, candidate, stable = status.step, status.candidate, status.stable
    if step is None or step.held is None or stable is None:
        return None
    watched_version = stable if step.stage == "Guard" else candidate
    if watched_version is None or requests.approve == watched_version.uid:
        return None
    name = watched_version.name
    if step.stage == "Guard":
        back = status.previous.name if status.previous is not None else "the version before"
        release: tuple[Release, ...] = (
            Release(
                command=rollout.shell.finetune("rollback", rollout.name),
                effect=f"all requests go back to {back} at once",
            ),
            go_on(rollout, effect=f"{name} stays in spite of it, and its guard goes on"),
        )
        where = f"{name} answers all requests, and"
    else:
        release = (give_up(rollout), go_on(rollout, effect=f"{name} goes on to the next step in spite of it"))
        where = f"{name} stays {_where(rollout)}, and"
    return Explanation(
        now=(f"{where} a regression is proven: {step.held}",),
        samples=rollout.sample_lines(),
        waits_for=(f"a person to decide about {name} (onRegression Pause): there is no time limit",),
        release=release,
    )


def watched(rollout: Rollout) -> Explanation | None:
    """A candidate in shadow, in a canary step, or waiting for its approval."""
    step = rollout.status.step
    if step is None or rollout.status.candidate is None or rollout.plan is None:
        return None
    if step.stage == "Approval":
        return _approval(rollout)
    return _sampling(rollout) if step.stage in ("Shadow", "Canary") else None


def _approval(rollout: Rollout) -> Explanation:
    status, requests = rollout.status, rollout.requests
    candidate = status.candidate
    assert candidate is not None  # noqa: S101 - watched() has looked
    share = f"; meanwhile it stays {_where(rollout)}" if status.step is not None and status.step.percent else ""
    common = Explanation(
        now=(f"{candidate.name} has passed all steps{share}",),
        samples=rollout.sample_lines(),
        by_itself=(rolls_back(rollout),),
    )
    if requests.pause:
        return replace(
            common,
            waits_for=(f"finetune.dev/pause to be removed: {requests.who} paused it; and an approval",),
            release=(resume(rollout), give_up(rollout)),
        )
    if requests.approve == candidate.uid:
        return replace(
            common,
            waits_for=(f"the operator to act on the approval by {requests.who}: within seconds",),
            release=(give_up(rollout),),
        )
    return replace(
        common,
        waits_for=(f"a person to approve {candidate.name} (rollout.approval Manual): there is no time limit",),
        release=(go_on(rollout, effect=f"promotes {candidate.name}: all requests move to it"), give_up(rollout)),
    )


def _sampling(rollout: Rollout) -> Explanation:
    status, plan, requests = rollout.status, rollout.plan, rollout.requests
    step, candidate = status.step, status.candidate
    assert step is not None  # noqa: S101 - watched() has looked
    assert candidate is not None  # noqa: S101
    assert plan is not None  # noqa: S101
    since = words.seconds(max(0.0, (rollout.now - step.start_time).total_seconds()))
    if step.stage == "Shadow":
        shadow = f"copies of {step.percent:g} % of the requests" if step.percent else "no copies of requests"
        probes = f" and {plan.probe_rate:g} held-out prompts a second" if plan.probe_rate else ""
        seen = f"clients see only {clients_of(status)}'s answers"
        what = f"{candidate.name} answers {shadow}{probes}, for {since} so far; {seen}"
    else:
        what = f"{candidate.name} answers clients' requests {_where(rollout)}, for {since} so far"
    overdue = _overdue(rollout)
    waits = (*gateways_behind(rollout), *_missing(rollout))
    release: tuple[Release, ...] = (give_up(rollout),)
    if overdue:
        waits = (*waits, overdue)
        release = (go_on(rollout, effect=f"{candidate.name} goes on although it is not decided"), *release)
    if requests.pause:
        waits = (f"finetune.dev/pause to be removed: {requests.who} paused it; samples count meanwhile", *waits)
        release = (resume(rollout), *release)
    return Explanation(
        now=(what,),
        samples=rollout.sample_lines() or (f"none of {step.needed} so far",),
        waits_for=waits,
        by_itself=tuple(
            line for line in (_next(rollout), _approved_before(rollout), _in_time(rollout), rolls_back(rollout)) if line
        ),
        release=release,
    )


def _missing(rollout: Rollout) -> tuple[str, ...]:
    """What the step lacks, and how long that takes as far as it is known."""
    status, plan, now = rollout.status, rollout.plan, rollout.now
    step = status.step
    assert step is not None  # noqa: S101
    assert plan is not None  # noqa: S101
    lines = []
    missing = step.needed - step.samples
    if missing > 0:
        noun = "pair" if step.stage == "Shadow" else "sample"
        counted = (status.analysis_time or now) - step.start_time
        pace = at_this_rate(missing=missing, seen=step.samples, seconds=counted.total_seconds())
        when = f": {pace}" if pace else _silence(rollout)
        lines.append(f"{words.count(missing, f'more {noun}')} of each metric{when}")
    lines += [
        f"{row.metric} to be decided: {row.reason}; only more requests tell, and how many is not known"
        for row in status.analysis
        if row.verdict == "Inconclusive" and row.samples >= step.needed
    ]
    if step.stage == "Canary" and step.index < len(plan.steps):
        soonest = step.start_time + timedelta(seconds=plan.steps[step.index].min_duration_seconds)
        if now < soonest:
            left = words.seconds((soonest - now).total_seconds())
            lines.append(f"{left} to pass (minDurationSeconds {plan.steps[step.index].min_duration_seconds})")
    if not lines:
        # Enough was seen, so the operator knows something else, or it looks within seconds.
        lines.append((status.message or "").partition("; waits for ")[2] or "the operator's next look: within seconds")
    return tuple(lines)


def _silence(rollout: Rollout) -> str:
    """Why no sample has come, and who must do what."""
    step, plan = rollout.status.step, rollout.plan
    assert step is not None  # noqa: S101
    assert plan is not None  # noqa: S101
    if step.samples:
        return ""
    if plan.probe_rate:
        return ": none has come so far; the first probes take a moment"
    if step.stage == "Canary" and plan.steps[step.index].match is not None:
        return ": none has come so far; only requests with the headers of this step count"
    return (
        ": none has come so far; clients must send requests (or give the next rollout shadow.probe, which needs no"
        " clients)"
    )


def _next(rollout: Rollout) -> str:
    following = rollout.next_stage()
    return f"then: {following}" if following else ""


def _approved_before(rollout: Rollout) -> str:
    candidate, requests, plan = rollout.status.candidate, rollout.requests, rollout.plan
    if candidate is None or plan is None or requests.approve != candidate.uid or plan.approval != "Manual":
        return ""
    return f"{requests.who} has approved {candidate.name} already: after the last step it is promoted at once"


def _in_time(rollout: Rollout) -> str:
    """What happens when the time for a decision is over; "" where it is over, or there is no limit."""
    step, plan = rollout.status.step, rollout.plan
    if step is None or plan is None or step.stage != "Shadow" or plan.shadow is None:
        return ""
    due = step.start_time + timedelta(seconds=plan.shadow.max_duration_seconds)
    then = {"Hold": "it waits for a person", "Reject": "it is rejected", "Proceed": "it goes on all the same"}
    consequence = f"{then[plan.on_inconclusive]} (onInconclusive {plan.on_inconclusive})"
    if rollout.now >= due:
        return "" if plan.on_inconclusive == "Hold" else f"not decided in time: {consequence}"
    left = words.seconds((due - rollout.now).total_seconds())
    return f"not decided by {due:%H:%M:%S} UTC, in {left}: {consequence}"


def _overdue(rollout: Rollout) -> str:
    """That the time is over and a person must decide; "" where that is not so."""
    step, plan = rollout.status.step, rollout.plan
    if step is None or plan is None or step.stage != "Shadow" or plan.shadow is None or plan.on_inconclusive != "Hold":
        return ""
    if rollout.now < step.start_time + timedelta(seconds=plan.shadow.max_duration_seconds):
        return ""
    return "or a person to decide: shadow.maxDurationSeconds is over (onInconclusive Hold)"


def _where(rollout: Rollout) -> str:
    """The place of the candidate: `in shadow`, `at step five, 5 % of the users`."""
    step, plan = rollout.status.step, rollout.plan
    if step is None or plan is None or step.stage == "Shadow" or not plan.steps:
        return "in shadow"
    return f"at {step_words(plan, index=min(step.index, len(plan.steps) - 1))}"
