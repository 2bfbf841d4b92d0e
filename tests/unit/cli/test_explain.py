"""What holds an endpoint and a job and what would release them, in every phase; and what `explain` prints of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.simulation.endpoint_world import EndpointWorld, Quality, endpoint_manifest, version_manifest
from tests.unit.cli.endpoints import (
    NOW,
    V2,
    V3,
    awaiting,
    canary,
    condition,
    endpoint,
    given,
    guarding,
    idle,
    outcome,
    rolling_back,
    row,
    served,
    shadowing,
    trying,
)
from tests.unit.cli.jobs import NOW as JOB_NOW
from tests.unit.cli.jobs import ended, job_with, reported, training
from tests.unit.cli.test_output import assert_golden

from finetune_api.finetunejob import Phase
from finetune_api.modelendpoint import APPROVE, PAUSE, REQUESTED_BY, ModelEndpoint
from finetune_api.shared_fields import NextStatus
from finetune_operator.cli.explain import at_this_rate, explain_endpoint, explain_job
from finetune_operator.cli.parser import build_parser
from finetune_operator.cli.target import Shell
from finetune_operator.core.conditions import State, Summary
from finetune_operator.job.finish import next_of

SHELL = Shell(namespace="ml", flags=("-n", "ml"))
LOCAL = Shell(namespace="default", flags=("--local",), local=True)
PAUSED = {PAUSE: "true", REQUESTED_BY: "bob"}
LATE = NOW + timedelta(seconds=3601)
NO_PROBES = {"shadow": {"percent": 20, "minSamples": 300}}


def explained(found: ModelEndpoint, *, now: datetime = NOW, shell: Shell = SHELL) -> str:
    return explain_endpoint(found, now=now, shell=shell).text


def next_at(found: ModelEndpoint) -> NextStatus:
    assert found.status.next is not None
    return found.status.next


def actions(found: NextStatus) -> list[str]:
    """What a person may do."""
    return [each.action for each in found.release]


def test_an_endpoint_without_a_version_tells_of_the_jobs_that_may_make_one() -> None:
    empty = endpoint(phase="Empty")
    alone = explained(empty)
    assert "clients get 503 until a version serves" in alone
    assert "no job names router as its endpointRef" in alone
    assert "kubectl apply -f FILE -n ml" in alone
    own, other = (
        job_with({"phase": "Training", "message": "training on 1 node (CPU)"}, endpointRef={"name": name})
        for name in ("router", "other")
    )
    said = explain_endpoint(empty, now=NOW, shell=SHELL, jobs=[own, other]).text
    assert "job router: Training: training on 1 node (CPU)" in said
    assert "finetune explain job router -n ml" in said
    assert "no job names" not in said
    assert said.count("finetune explain job") == 1


STATES: dict[str, tuple[ModelEndpoint, str, list[str]]] = {
    "empty": (endpoint(phase="Empty"), "FineTuneJob with endpointRef router", []),
    "idle": (idle(), "", ["RollBack"]),
    "idle, first version": (idle(versions=[outcome("v2", V2, "Promoted")]), "", []),
    "idle, a version waits": (
        idle(reason="BaselineChanged", waits_for=("v3 was compared with v1, and v2 is stable now",)),
        "v3 was compared with v1, and v2 is stable now",
        ["RollBack"],
    ),
    "idle, a version is held": (
        idle(reason="AwaitingApproval", held={"name": "v3", "uid": V3, "reason": "not decided"}),
        "a person to decide about v3",
        ["Approve", "Reject", "RollBack"],
    ),
    "idle, a version is compared again": (idle(reason="Comparing"), "the evaluation of the next", ["RollBack"]),
    "idle, paused": (idle(phase="Paused", annotations=PAUSED), "bob paused it", ["Resume", "RollBack"]),
    "stalled": (idle(reason="NotProven", stalled=True, message="v3 did not pass"), "somebody to put that right", []),
    "stalled, pin": (idle(reason="NotProven", stalled=True, pin="v3"), "somebody to put that right", ["Unpin"]),
    "stalled, plan": (
        canary(reason="PlanUnsupported", stalled=True),
        "the version of the operator that began this",
        [],
    ),
    "stalled, no former": (idle(reason="NothingToRollBackTo", stalled=True), "put that right", ["Withdraw"]),
    "starting": (
        trying("Starting", phase="Shadowing", reason="Starting"),
        "v2 to answer a first request",
        ["Reject"],
    ),
    "starting, no GPU": (
        trying("Starting", phase="Shadowing", reason="WaitingForNode"),
        "a node with room for it",
        ["Reject"],
    ),
    "starting, name taken": (trying("Starting", phase="Shadowing", reason="NameTaken"), "to be free", ["Reject"]),
    "starting, paused": (
        trying("Starting", phase="Paused", reason="Paused", annotations=PAUSED),
        "bob paused it",
        ["Resume", "Reject"],
    ),
    "shadow": (shadowing(), "300 pairs of each metric", ["Reject"]),
    "shadow, silent": (
        shadowing(analysis=[], step={"samples": 0}, rollout=NO_PROBES),
        "300 pairs of each metric: clients must send requests",
        ["Reject"],
    ),
    "shadow, load": (
        shadowing(
            analysis=[row("error_rate", samples=300, verdict="Pass")],
            step={"samples": 300},
            waits_for=("more than 50 % of the shadow's requests are dropped under load",),
        ),
        "more than 50 % of the shadow's requests are dropped under load",
        ["Reject"],
    ),
    "shadow, undecided": (
        shadowing(analysis=[row("quality", samples=400)], step={"samples": 400}),
        "more requests, until quality can be told",
        ["Reject"],
    ),
    "gateways behind": (
        shadowing(analysis=[row("quality", samples=400, verdict="Pass")], step={"samples": 400}),
        "all gateways to follow the newest routes",
        ["Reject"],
    ),
    "canary": (canary(), "600 s to pass (minDurationSeconds)", ["Reject"]),
    "canary, paused": (canary(phase="Paused", reason="Paused", annotations=PAUSED), "bob", ["Resume", "Reject"]),
    "canary by header": (
        canary(analysis=[], step={"index": 0, "name": "internal", "samples": 0, "needed": 50}, rollout=NO_PROBES),
        "50 samples of each metric: only requests with the headers of this step count",
        ["Reject"],
    ),
    "approval": (awaiting(), "a person to approve v2", ["Approve", "Reject"]),
    "approval given": (
        awaiting(annotations={APPROVE: V2}, approval=given("the promotion")),
        "all gateways",
        ["Reject"],
    ),
    "approval given before, for a regression": (
        awaiting(annotations={APPROVE: V2}, approval=given("quality: worse", used=True)),
        "a person to approve v2",
        ["Approve", "Reject"],
    ),
    "approval, paused": (
        awaiting(phase="Paused", annotations=PAUSED),
        "bob paused it\na person to approve v2",
        ["Resume", "Approve", "Reject"],
    ),
    "promoting": (guarding(phase="Promoting", stage="Promoting"), "all gateways", []),
    "guard": (guarding(), "the 3600 s of the guard to pass without a regression", ["RollBack"]),
    "guard, paused": (guarding(phase="Paused", annotations=PAUSED), "bob paused it", ["Resume", "RollBack"]),
    "rolling back": (rolling_back(), "all gateways to follow the newest routes", []),
}


@pytest.mark.parametrize("state", STATES)
def test_what_an_endpoint_waits_for_and_what_releases_it(state: str) -> None:
    found, waits_for, expected = STATES[state]
    following = next_at(found)
    assert waits_for in "\n".join(following.waits_for)
    assert bool(following.waits_for) == bool(waits_for)
    assert actions(following) == expected
    text = explained(found)
    for line in (*following.waits_for, *following.then, *(each.effect for each in following.release)):
        assert line in text


def test_a_candidate_that_is_ready_waits_for_the_end_of_the_pause_alone() -> None:
    found = next_at(trying("Starting", phase="Paused", reason="Paused", annotations=PAUSED))
    assert found.waits_for == ["finetune.dev/pause to be removed: bob paused it"]
    assert not any("not ready by then" in each for each in found.then)


@pytest.mark.parametrize("stage", ["Shadow", "Canary", "Guard"])
@pytest.mark.parametrize("policy", ["RollBack", "Pause"])
def test_what_a_regression_does(stage: str, policy: str) -> None:
    make = {"Shadow": shadowing, "Canary": canary, "Guard": guarding}[stage]
    expected = {
        ("Shadow", "RollBack"): "a regression that is proven rejects it",
        ("Canary", "RollBack"): "a regression that is proven sends all requests back to v1 at once",
        ("Guard", "RollBack"): "a regression that is proven sends all requests back to v1 at once",
    }.get((stage, policy), "a regression that is proven holds it until a person decides")
    assert f"{expected} (onRegression {policy})" in next_at(make(rollout={"onRegression": policy})).then


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (shadowing, ["Reject", "Approve"]),
        (canary, ["Reject", "Approve"]),
        (awaiting, ["Reject", "Approve"]),
        (guarding, ["RollBack", "Approve"]),
    ],
)
def test_held_by_a_regression(make: Any, expected: list[str]) -> None:
    held = make(phase="Paused", reason="Regression", rollout={"onRegression": "Pause"}, step={"held": "quality: worse"})
    assert next_at(held).waits_for == ["a person to decide about v2 (onRegression Pause): there is no time limit"]
    assert actions(next_at(held)) == expected


@pytest.mark.parametrize(
    ("policy", "before", "after"),
    [
        ("Hold", "it waits for a person (onInconclusive Hold)", ["Approve", "Reject"]),
        ("Reject", "it is rejected (onInconclusive Reject)", ["Reject"]),
        ("Proceed", "it goes on all the same (onInconclusive Proceed)", ["Reject"]),
    ],
)
def test_when_the_time_of_the_shadow_is_over(policy: str, before: str, after: list[str]) -> None:
    found = shadowing(rollout={"onInconclusive": policy})
    assert f"not decided by then: {before}" in next_at(found).then
    assert "until 2026-01-05 13:05:00 UTC, in 55 min" in explained(found)
    late = next_at(shadowing(rollout={"onInconclusive": policy}, now=LATE))
    assert late.until is None
    assert actions(late) == after
    assert ("shadow.maxDurationSeconds is over" in "\n".join(late.waits_for)) == (policy == "Hold")


@pytest.mark.parametrize(
    "found", [awaiting(), guarding(), idle(), canary()], ids=["approval", "guard", "idle", "canary"]
)
def test_a_version_that_spec_pins_is_named(found: ModelEndpoint) -> None:
    pinned = endpoint(pin="v2", **{**found.status.to_dict(), "next": None, "plan": None})
    leaving = [each.effect for each in next_at(pinned).release if each.action in ("Reject", "RollBack")]
    assert leaving
    assert all("spec.version still pins v2" in each for each in leaving)


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (
            idle(conditions=[condition("Available", "False", "GatewayNotReady", "no gateway is ready")]),
            "no gateway is ready",
        ),
        (canary(conditions=[condition("RequestVoid", "True", "AnotherVersion", "x is void")]), "x is void"),
        (canary(conditions=[condition("Contested", "True", "ChangedByOthers", "y changes z")]), "y changes z"),
        (idle(observedGeneration=0), "has not seen the newest change of the spec"),
        (
            idle(versions=[outcome("v2", V2, "Promoted"), outcome("v3", V3, "RolledBack", reason="error_rate: up")]),
            "the last one tried, v3: RolledBack by operator at 2026-01-05 12:00:10 UTC: error_rate: up",
        ),
        (canary(), "need the verb approve on modelendpoints (ClusterRole finetune-approve)"),
    ],
)
def test_notes(found: ModelEndpoint, note: str) -> None:
    assert note in explained(found).rpartition("Note:")[2]


def test_how_far_gateways_and_samples_are() -> None:
    text = explained(canary(routes={"epoch": 7, "acknowledged": 1, "gateways": 3}))
    assert "1 of 3 gateways follow the newest routes (epoch 7)" in text
    assert "error_rate: 300 samples, bad ones 0.01 against 0.012 of stable, difference -0.03 to +0.02: Pass" in text


def test_what_is_not_proven_is_told() -> None:
    first = served("v2", V2) | {"proven": False, "unproven": "the first version"}
    assert "v2 is not proven: the first version" in explained(idle(stable=first))


def test_an_early_approval_is_told() -> None:
    lines = next_at(canary(annotations={APPROVE: V2}, approval=given("the promotion"))).then
    assert "ann has approved it already: after the last step it is promoted at once" in lines


@pytest.mark.parametrize(
    ("found", "shell", "command"),
    [
        (awaiting(), Shell(namespace="my ns", flags=("-n", "my ns")), "finetune approve router -n 'my ns'"),
        (awaiting(), LOCAL, "finetune approve router --local"),
        (idle(reason="VersionNotFound", stalled=True, pin="v9"), SHELL,
         """kubectl patch modelendpoint router --type=merge -p '{"spec":{"version":""}}' -n ml"""),
        (idle(reason="VersionNotFound", stalled=True, pin="v9"), LOCAL, "finetune up -f FILE"),
        (idle(reason="NothingToRollBackTo", stalled=True), SHELL,
         "kubectl annotate modelendpoint router finetune.dev/rollback- -n ml"),
        (endpoint(observedGeneration=None), SHELL, "finetune doctor -n ml"),
    ],
)  # fmt: skip
def test_commands_can_be_copied(found: ModelEndpoint, shell: Shell, command: str) -> None:
    text = explained(found, shell=shell)
    assert f"  {command}\n" in text
    assert not (shell.local and "ClusterRole" in text)


def test_the_whole_text() -> None:
    assert_golden("explain-shadow", explained(shadowing()))
    assert_golden("explain-approval", explained(awaiting()))


def test_a_status_of_the_version_before_is_shown_without_what_it_lacks() -> None:
    old = canary(message="v2 answers requests; waits for 600 s to pass")
    old = old.model_copy(update={"status": old.status.model_copy(update={"next": None})})
    text = explained(old)
    assert "v2 answers requests; waits for 600 s to pass" in text
    assert "error_rate: 300 samples" in text
    assert "Waits for:" not in text


@pytest.mark.parametrize(
    ("missing", "seen", "seconds", "text"),
    [
        (0, 10, 10, ""),
        (5, 0, 10, ""),
        (90, 60, 60, "; at the rate so far (1 a second) the rest takes about 1 min 30 s"),
        (10, 30, 60, "; at the rate so far (30 a minute) the rest takes about 20 s"),
    ],
)
def test_the_time_that_is_left(missing: int, seen: int, seconds: float, text: str) -> None:
    assert at_this_rate(missing=missing, seen=seen, seconds=seconds) == text


async def test_every_state_of_a_real_rollout_says_what_it_waits_for() -> None:
    world = EndpointWorld()
    await world.create(endpoint_manifest(approval="Manual"))
    seen: set[str] = set()
    await world.create(version_manifest("v1"))
    uid = ""
    for tick in range(400):
        if tick == 20:
            made = await world.create(version_manifest("v2", baseline="1"), quality=Quality())
            uid = made["metadata"]["uid"]
        await world.tick()
        await world.reconcile()
        status = await world.status()
        stage = status.step.stage if status.step else "None"
        seen.add(stage)
        assert status.next is not None
        assert bool(status.next.waits_for) == (stage != "None" or status.stable is None), status
        if status.phase == "AwaitingApproval":
            world.annotate(approve=uid, requested_by="ann")
        if status.phase == "Guarding":
            world.annotate(rollback=uid, requested_by="ann")
        if stage == "None" and "RollingBack" in seen:
            break
    assert seen == {"None", "Starting", "Shadow", "Canary", "Approval", "Promoting", "Guard", "RollingBack"}


# -- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "state", "reason", "planned", "waits_for", "then"),
    [
        ("Pending", "Reconciling", "ClaimNotFound", False, "the message", "not there by then: the job fails"),
        ("Pending", "Reconciling", "Pending", True, "its first pod", ""),
        ("Pending", "Stalled", "NotSupported", False, "a newer version of the operator", ""),
        ("Queued", "Reconciling", "Queued", True, "room in its queue", ""),
        ("Queued", "Reconciling", "Unschedulable", True, "a node with room for it", "nodes on which the last"),
        ("Queued", "Reconciling", "PodsNotCreated", True, "a quota or a policy", ""),
        ("Training", "Reconciling", "Restarting", True, "the pause after a failure", ""),
        ("Preparing", "Reconciling", "ImagePullFailing", True, "its image", "not there by then: the job fails"),
        ("Training", "Reconciling", "ContainerConfigInvalid", True, "a Secret may be missing", "the job fails"),
        ("Training", "Reconciling", "Training", True, "Train to end", "Evaluate"),
        ("Evaluating", "Reconciling", "Evaluating", True, "Evaluate to end", "the verdict"),
        ("Suspended", "Reconciling", "Suspended", True, "spec.suspend to be false", ""),
    ],
)
def test_what_a_job_waits_for(
    phase: Phase, state: State, reason: str, planned: bool, waits_for: str, then: str
) -> None:
    summary = Summary(state=state, reason=reason, message="the message")
    found = next_of(phase=phase, summary=summary, until=NOW, planned=planned)
    assert found is not None
    assert waits_for in found.waits_for[0]
    assert then in "".join(found.then)
    assert bool(then) == bool(found.then)
    assert actions(found) == (["Unsuspend"] if phase == "Suspended" else [])


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Rejected", "RolledBack", "Superseded"])
def test_a_job_that_has_ended_waits_for_nothing(phase: Phase) -> None:
    summary = Summary(state="Ready" if phase == "Succeeded" else "Stalled", reason=phase, message="m")
    assert next_of(phase=phase, summary=summary, until=None, planned=True) is None
    assert "Waits for:\n  nothing" in explain_job(job_with({"phase": phase}), now=JOB_NOW, shell=SHELL).text


UNSUSPEND = """kubectl patch finetunejob router --type=merge -p '{"spec":{"suspend":false}}' -n ml"""
SUSPENDED = {
    "phase": "Suspended",
    "next": {"waitsFor": ["spec.suspend to be false"], "release": [{"action": "Unsuspend", "effect": "it goes on"}]},
}


@pytest.mark.parametrize(
    ("job", "shell", "command"),
    [
        (job_with({"observedGeneration": None}), SHELL, "finetune doctor -n ml"),
        (job_with({"observedGeneration": None}), LOCAL, "finetune run -f FILE"),
        (job_with(SUSPENDED), SHELL, UNSUSPEND),
        (job_with(SUSPENDED), LOCAL, "finetune run -f FILE"),
        (training(), SHELL, "finetune logs router -f --stage Train -n ml"),
        (ended(), SHELL, "finetune report router -n ml"),
    ],
)
def test_commands_about_a_job(job: Any, shell: Shell, command: str) -> None:
    assert f"  {command}\n" in explain_job(job, now=JOB_NOW, shell=shell).text


def test_a_run_that_trains_says_how_far_it_is() -> None:
    job = training()
    trainer = reported(step=12, loss=1.25).model_copy(update={"last_updated_time": JOB_NOW})
    job = job.model_copy(update={"status": job.status.model_copy(update={"trainer_status": trainer})})
    text = explain_job(job, now=JOB_NOW, shell=SHELL).text
    assert "step 12/48, loss 1.25, 412 tokens/s, 1 min 20 s left\n  the newest checkpoint is step 10" in text
    assert "tried again: a training process was killed" in text


def test_a_run_that_was_not_decided_says_what_would_decide_it() -> None:
    text = explain_job(ended(phase="Rejected", verdict="Inconclusive"), now=JOB_NOW, shell=SHELL).text
    assert "a run is a record" in text


def test_a_job_in_its_rollout_offers_what_the_endpoint_offers() -> None:
    rollout = {"endpoint": "router-b", "phase": "AwaitingApproval", "promoted": False}
    following = next_at(awaiting()).to_dict()
    text = explain_job(
        job_with({"phase": "AwaitingApproval", "rollout": rollout, "next": following}), now=JOB_NOW, shell=SHELL
    ).text
    assert "a person to approve v2" in text
    assert "  finetune approve router-b -n ml\n" in text
    assert "  finetune explain endpoint router-b -n ml\n" in text


@pytest.mark.parametrize(
    "words",
    [("run", "-f", "FILE"), ("up", "-f", "FILE"), ("approve", "router"), ("get", "jobs"), ("explain", "job", "r")],
)
def test_commands_that_it_shows_in_local_mode_can_be_typed(words: Sequence[str]) -> None:
    shell = Shell(namespace="ml", flags=("--local", "--home", "here", "-n", "ml"), local=True)
    program, *typed = shlex.split(shell.finetune(*words))
    assert program == "finetune"
    assert build_parser().parse_args(typed).home == "here"
