"""What `explain` says of an endpoint and of a job, in every phase and under every policy."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.simulation.endpoint_world import EndpointWorld, Quality, endpoint_manifest, version_manifest
from tests.unit.cli.endpoints import (
    NOW,
    V1,
    V2,
    V3,
    awaiting,
    canary,
    condition,
    endpoint,
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

from finetune_api.modelendpoint import APPROVE, PAUSE, REJECT, REQUESTED_BY, ROLLBACK, ModelEndpoint
from finetune_operator.cli.explain_endpoint import explain_endpoint
from finetune_operator.cli.explain_job import explain_job
from finetune_operator.cli.explanation import Explanation, Shell, at_this_rate

SHELL = Shell(namespace="ml", flags=("-n", "ml"))
LOCAL = Shell(namespace="default", flags=("--local",), local=True)
PAUSED = {PAUSE: "true", REQUESTED_BY: "bob"}
LATE = NOW + timedelta(seconds=3601)


def explained(found: ModelEndpoint, *, now: datetime = NOW, shell: Shell = SHELL) -> Explanation:
    return explain_endpoint(found, now=now, shell=shell)


def typed(explanation: Explanation) -> list[str]:
    """The verbs that are offered."""
    return [each.command.split()[1] for each in explanation.release]


STATES: dict[str, tuple[ModelEndpoint, str, str, list[str]]] = {
    "not seen": (endpoint(observedGeneration=None), "no operator has looked", "the operator", ["doctor"]),
    "empty": (endpoint(phase="Empty"), "no version has been proven", "FineTuneJob with endpointRef router", ["apply"]),
    "idle": (idle(), "v2 answers all requests", "", ["rollback"]),
    "idle, first version": (idle(versions=[outcome("v2", V2, "Promoted")]), "v2 answers all requests", "", []),
    "idle, a version waits": (
        idle(message="v2 serves all requests; v3 was compared with v1, and v2 is stable now"),
        "v2 answers all requests",
        "v3 was compared with v1, and v2 is stable now",
        ["rollback"],
    ),
    "idle, a version is compared again": (
        idle(reason="Comparing", message="v2 serves all requests; comparing v3 with v2, which is stable now"),
        "comparing v3 with v2, which is stable now",
        "the evaluation to end",
        ["rollback"],
    ),
    "idle, paused": (idle(phase="Paused", annotations=PAUSED), "no version is tried", "bob paused it", ["resume"]),
    "stalled, pin": (
        idle(reason="NotProven", stalled=True, message="v3 did not pass its evaluation (Fail)"),
        "stalled (NotProven): v2 serves as before",
        "v3 did not pass its evaluation (Fail)",
        [],
    ),
    "stalled, plan": (
        canary(reason="PlanUnsupported", stalled=True, message="the rollout's plan has version 2"),
        "stalled (PlanUnsupported)",
        "this is for whoever runs the operator",
        [],
    ),
    "stalled, no former": (
        idle(reason="NothingToRollBackTo", stalled=True, message="there is no other version"),
        "stalled",
        "there is no other version",
        ["annotate"],
    ),
    "starting": (
        trying("Starting", phase="Shadowing", reason="Starting", message="starting the servers of v2"),
        "starting the servers of v2",
        "v2 to answer a first request",
        ["reject"],
    ),
    "starting, no GPU": (
        trying("Starting", phase="Shadowing", reason="WaitingForNode", message="v2 waits for a node: 0/2 nodes"),
        "v2 cannot start: 0/2 nodes",
        "a node with room for it",
        ["reject"],
    ),
    "starting, paused": (
        trying("Starting", phase="Paused", reason="Paused", annotations=PAUSED),
        "the servers of v2 are ready",
        "bob paused it",
        ["resume", "reject"],
    ),
    "shadow": (
        shadowing(),
        "copies of 20 % of the requests",
        "88 more pairs of each metric: at the rate so far (42.4 a minute) about 2 min 5 s more",
        ["reject"],
    ),
    "shadow, silent": (
        shadowing(analysis=[], step={"samples": 0}, rollout={"shadow": {"percent": 20, "minSamples": 300}}),
        "v2 answers copies",
        "300 more pairs of each metric: none has come so far; clients must send requests",
        ["reject"],
    ),
    "shadow, probes only": (
        shadowing(analysis=[], step={"samples": 0, "percent": 0}),
        "no copies of requests and 2 held-out prompts a second",
        "the first probes take a moment",
        ["reject"],
    ),
    "shadow, load": (
        shadowing(
            analysis=[row("error_rate", samples=300, verdict="Pass")],
            step={"samples": 300},
            message="v2 answers copies of requests; waits for 90 of 100 shadow requests were dropped under load",
        ),
        "v2 answers copies",
        "90 of 100 shadow requests were dropped under load",
        ["reject"],
    ),
    "shadow, undecided": (
        shadowing(
            analysis=[row("quality", samples=400, reason="the rate seen is higher by 0.03")], step={"samples": 400}
        ),
        "v2 answers copies",
        "quality to be decided: the rate seen is higher by 0.03",
        ["reject"],
    ),
    "gateways behind": (
        canary(routes={"epoch": 7, "acknowledged": 1, "gateways": 3}),
        "v2 answers clients' requests",
        "2 of 3 gateways to take the newest routes (epoch 7)",
        ["reject"],
    ),
    "canary": (canary(), "at step five, 5 % of the users", "5 min to pass (minDurationSeconds 600)", ["reject"]),
    "canary, paused": (
        canary(phase="Paused", reason="Paused", annotations=PAUSED),
        "at step five",
        "bob paused it",
        ["resume", "reject"],
    ),
    "canary by header, probes": (
        canary(analysis=[], step={"index": 0, "name": "internal", "samples": 0, "needed": 50, "percent": 80}),
        "80 % of the users whose requests have x-team: ml",
        "none has come so far; the first probes take a moment",
        ["reject"],
    ),
    "canary by header": (
        canary(
            analysis=[],
            step={"index": 0, "name": "internal", "samples": 0, "needed": 50, "percent": 80},
            rollout={"shadow": {"percent": 20, "minSamples": 300}},
        ),
        "80 % of the users whose requests have x-team: ml",
        "only requests with the headers of this step count",
        ["reject"],
    ),
    "approval": (awaiting(), "v2 has passed all steps", "a person to approve v2", ["approve", "reject"]),
    "approval given": (
        awaiting(annotations={APPROVE: V2, REQUESTED_BY: "ann"}),
        "v2 has passed all steps",
        "the operator to act on the approval by ann",
        ["reject"],
    ),
    "approval, paused": (
        awaiting(phase="Paused", annotations=PAUSED),
        "v2 has passed",
        "bob paused it; and an approval",
        ["resume", "reject"],
    ),
    "promoting": (
        guarding(phase="Promoting", stage="Promoting"),
        "v2 is promoted: all requests move to it",
        "gateways",
        [],
    ),
    "guard": (guarding(), "v1 stays warm", "55 min of the guard to pass without a regression", ["rollback"]),
    "guard, paused": (
        guarding(phase="Paused", annotations=PAUSED),
        "v1 stays warm",
        "the guard does not end",
        ["resume", "rollback"],
    ),
    "rolling back": (
        rolling_back(),
        "all requests move back to v1 after v2 was rolled back: error_rate: up",
        "1 of 2 gateways",
        [],
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_what_happens_what_it_waits_for_and_what_to_type(state: str) -> None:
    found, now, waits_for, commands = STATES[state]
    explanation = explained(found)
    assert now in "\n".join(explanation.now)
    assert waits_for in "\n".join(explanation.waits_for)
    assert bool(explanation.waits_for) == bool(waits_for)
    assert typed(explanation) == commands


@pytest.mark.parametrize("stage", ["Shadow", "Canary", "Guard"])
@pytest.mark.parametrize("policy", ["RollBack", "Pause"])
def test_what_a_regression_does(stage: str, policy: str) -> None:
    make = {"Shadow": shadowing, "Canary": canary, "Guard": guarding}[stage]
    lines = "\n".join(explained(make(rollout={"onRegression": policy})).by_itself)
    expected = {
        ("Shadow", "RollBack"): "a regression that is proven rejects it",
        ("Canary", "RollBack"): "a regression that is proven sends all requests back to v1 at once",
        ("Guard", "RollBack"): "a regression that is proven sends all requests back to v1 at once",
    }.get((stage, policy), "a regression that is proven holds it until a person decides")
    assert f"{expected} (onRegression {policy})" in lines


@pytest.mark.parametrize(
    ("make", "commands", "place"),
    [
        (shadowing, ["reject", "approve"], "v2 stays in shadow"),
        (canary, ["reject", "approve"], "v2 stays at step five"),
        (awaiting, ["reject", "approve"], "v2 stays at step quarter"),
        (guarding, ["rollback", "approve"], "v2 answers all requests"),
    ],
)
def test_held_by_a_regression(make: Any, commands: list[str], place: str) -> None:
    held = make(phase="Paused", reason="Regression", rollout={"onRegression": "Pause"}, step={"held": "quality: worse"})
    explanation = explained(held)
    assert place in explanation.now[0]
    assert "a regression is proven: quality: worse" in explanation.now[0]
    assert explanation.waits_for == ("a person to decide about v2 (onRegression Pause): there is no time limit",)
    assert typed(explanation) == commands
    approved = make(
        phase="Paused", rollout={"onRegression": "Pause"}, step={"held": "quality: worse"},
        annotations={APPROVE: V2, REQUESTED_BY: "ann"},
    )  # fmt: skip
    assert "a person to decide" not in explained(approved).text()


@pytest.mark.parametrize(
    ("policy", "before", "after", "commands"),
    [
        ("Hold", "it waits for a person (onInconclusive Hold)", "", ["approve", "reject"]),
        ("Reject", "it is rejected (onInconclusive Reject)", "not decided in time: it is rejected", ["reject"]),
        ("Proceed", "it goes on all the same (onInconclusive Proceed)", "not decided in time: it goes on", ["reject"]),
    ],
)
def test_when_the_time_of_the_shadow_is_over(policy: str, before: str, after: str, commands: list[str]) -> None:
    found = shadowing(rollout={"onInconclusive": policy})
    assert f"not decided by 13:05:00 UTC, in 55 min: {before}" in explained(found).by_itself
    late = explained(found, now=LATE)
    assert after in "\n".join(late.by_itself)
    assert typed(late) == commands
    assert ("shadow.maxDurationSeconds is over" in "\n".join(late.waits_for)) == (policy == "Hold")


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (
            idle(conditions=[condition("Available", "False", "GatewayNotReady", "no gateway is ready")]),
            "no gateway is ready",
        ),
        (
            canary(annotations={APPROVE: V3}),
            f"finetune.dev/approve is void: it is for another version ({V3}), not for v2",
        ),
        (
            awaiting(annotations={APPROVE: V1}),
            f"finetune.dev/approve is void: it is for another version, v1 ({V1}), not for v2",
        ),
        (
            idle(annotations={REJECT: V2}),
            f"finetune.dev/reject is void: it is for a version that is not under way, v2 ({V2})",
        ),
        (idle(observedGeneration=0), "has not seen the newest change of the spec"),
        (
            idle(versions=[outcome("v2", V2, "Promoted"), outcome("v3", V3, "RolledBack", reason="error_rate: up")]),
            "the last one tried, v3, was rolled back by operator at 2026-01-05 12:00:10 UTC: error_rate: up",
        ),
        (canary(), "need the verb approve on modelendpoints (ClusterRole finetune-approve)"),
    ],
)
def test_notes(found: ModelEndpoint, note: str) -> None:
    assert note in "\n".join(explained(found).notes)


@pytest.mark.parametrize("decision", [{APPROVE: V2}, {APPROVE: V1}, {ROLLBACK: V3}])
def test_a_decision_that_was_carried_out_is_no_news(decision: dict[str, str]) -> None:
    found = idle(
        annotations=decision | {REQUESTED_BY: "ann"},
        versions=[outcome("v1", V1, "Promoted"), outcome("v2", V2, "Promoted"), outcome("v3", V3, "RolledBack")],
    )
    assert "void" not in explained(found, shell=LOCAL).text()


def test_an_early_approval_is_told() -> None:
    lines = explained(canary(annotations={APPROVE: V2, REQUESTED_BY: "ann"})).by_itself
    assert "ann has approved v2 already: after the last step it is promoted at once" in lines


def test_commands_can_be_copied() -> None:
    release = explained(awaiting(), shell=Shell(namespace="my ns", flags=("-n", "my ns"))).release[0]
    assert release.command == "finetune approve router -n 'my ns'"
    local = explained(awaiting(), shell=LOCAL)
    assert local.release[0].command == "finetune approve router --local"
    assert "ClusterRole" not in local.text()
    pinned = idle(reason="VersionNotFound", stalled=True, message="gone")
    pinned = pinned.model_copy(update={"spec": pinned.spec.model_copy(update={"version": "v9"})})
    assert [each.command for each in explained(pinned).release] == [
        "finetune get versions -n ml",
        """kubectl patch modelendpoint router --type=merge -p '{"spec":{"version":""}}' -n ml""",
    ]


def test_the_whole_text() -> None:
    assert_golden("explain-shadow", explained(shadowing()).text())
    assert_golden("explain-approval", explained(awaiting()).text())


@pytest.mark.parametrize(
    ("missing", "seen", "seconds", "text"),
    [
        (0, 10, 10, ""),
        (5, 0, 10, ""),
        (90, 60, 60, "at the rate so far (1 a second) about 1 min 30 s more"),
        (10, 30, 60, "at the rate so far (30 a minute) about 20 s more"),
    ],
)
def test_the_time_that_is_left(missing: int, seen: int, seconds: float, text: str) -> None:
    assert at_this_rate(missing=missing, seen=seen, seconds=seconds) == text


async def test_every_state_of_real_rollouts_is_understood() -> None:
    """The operator's own statuses, look by look: none falls through to the bare message."""
    world = EndpointWorld()
    await world.create(endpoint_manifest(approval="Manual"))
    seen: set[str] = set()

    async def look() -> None:
        found = await world.cluster.get(kind="ModelEndpoint", namespace="ml", name="router")
        assert found is not None
        current = ModelEndpoint.from_object(found)
        explanation = explained(current, now=world.now)
        stage = current.status.step.stage if current.status.step else "None"
        seen.add(stage)
        assert explanation.now != (current.status.message,) or stage == "Starting", explanation
        assert explanation.waits_for or stage == "None", explanation
        assert "None" not in explanation.text(), explanation

    await world.create(version_manifest("v1"))
    uid = ""
    for tick in range(400):
        if tick == 20:
            made = await world.create(version_manifest("v2", baseline="1"), quality=Quality())
            uid = made["metadata"]["uid"]
        await world.tick()
        await world.reconcile()
        await look()
        status = await world.status()
        if status.phase == "AwaitingApproval":
            world.annotate(approve=uid, requested_by="ann")
        if status.phase == "Guarding":
            world.annotate(rollback=uid, requested_by="ann")
    assert seen == {"None", "Starting", "Shadow", "Canary", "Approval", "Promoting", "Guard", "RollingBack"}


# -- jobs -------------------------------------------------------------------------------------------------------------


def job_explained(job: Any, *, found: ModelEndpoint | None = None, shell: Shell = SHELL) -> Explanation:
    return explain_job(job, endpoint=found, now=JOB_NOW, shell=shell)


def in_rollout(phase: str) -> Any:
    rollout = {"endpoint": "router", "phase": phase, "promoted": False}
    version = {"name": "v2", "uid": V2}
    return job_with(
        {"phase": phase, "message": "m", "rollout": rollout, "modelVersion": version}, endpointRef={"name": "router"}
    )


def waiting(phase: str, reason: str, message: str) -> Any:
    conditions = [condition("Ready", "False", reason, message)]
    return job_with({"phase": phase, "message": message, "conditions": conditions})


@pytest.mark.parametrize(
    ("job", "now", "waits_for", "commands"),
    [
        (job_with({"observedGeneration": None}), "no operator has looked", "the operator", ["doctor"]),
        (waiting("Pending", "ClaimNotFound", "no claim x"), "no pod of it runs (ClaimNotFound)", "no claim x", []),
        (waiting("Queued", "Kueue", "no quota"), "no pod of it runs", "no quota\nquota: whoever runs the queue", []),
        (job_with({"phase": "Suspended"}), "spec.suspend is true", "spec.suspend to be false", ["patch"]),
        (training(), "attempt 2", "Train to end", ["logs"]),
        (ended(), "proven against the base model", "", ["report"]),
        (ended(phase="Rejected", verdict="Inconclusive"), "router", "", ["report"]),
        (job_with({"phase": "Failed", "message": "out of memory"}), "out of memory", "", []),
        (job_with({"phase": "RolledBack", "message": "v2: error_rate"}, endpointRef={"name": "router"}),
         "v2: error_rate", "", ["describe"]),
    ],
)  # fmt: skip
def test_a_job(job: Any, now: str, waits_for: str, commands: list[str]) -> None:
    explanation = job_explained(job)
    assert now in "\n".join(explanation.now)
    assert waits_for in "\n".join(explanation.waits_for)
    assert bool(explanation.waits_for) == bool(waits_for)
    assert typed(explanation) == commands


def test_a_run_that_trains_says_how_far_it_is() -> None:
    job = training()
    trainer = reported(step=12, loss=1.25).model_copy(update={"last_updated_time": JOB_NOW})
    job = job.model_copy(update={"status": job.status.model_copy(update={"trainer_status": trainer})})
    explanation = job_explained(job)
    assert explanation.samples == (
        "step 12/48, loss 1.25, 412 tokens/s, 1 min 20 s left; its newest checkpoint is step 10",
    )
    assert explanation.waits_for == ("Train to end: about 1 min 20 s more",)
    assert explanation.now[1] == "tried again: a training process was killed"


def test_a_job_in_its_rollout_is_explained_by_the_endpoint() -> None:
    explanation = job_explained(in_rollout("AwaitingApproval"), found=awaiting())
    assert explanation.headline == "FineTuneJob router (AwaitingApproval)"
    assert explanation.now[0] == "v2 is proven; router rolls it out"
    assert typed(explanation) == ["approve", "reject"]


def test_a_job_whose_version_waits_for_its_turn() -> None:
    explanation = job_explained(in_rollout("Queued"), found=canary())
    assert explanation.now[0] == "v2 is proven and waits for its turn at router"
    assert explanation.waits_for == explained(canary()).waits_for


def test_a_job_says_what_became_of_its_version() -> None:
    job = job_with({"phase": "Succeeded", "modelVersion": {"name": "v2", "uid": V2}}, endpointRef={"name": "router"})
    assert job_explained(job, found=idle()).by_itself == ("router serves v2 until a better one is proven",)
    later = idle(stable=served("v3", V3))
    assert job_explained(job, found=later).by_itself == ("router serves v3 now",)
    assert "no endpoint serves it" in job_explained(job).by_itself[0]


def test_a_step_without_a_plan_says_what_the_operator_says() -> None:
    bare = endpoint(phase="Canary", message="v2 answers requests", candidate=served("v2", V2), stable=served("v1", V2))
    bare = bare.model_copy(
        update={"status": bare.status.model_copy(update={"step": canary().status.step, "plan": None})}
    )
    assert explained(bare).now == ("v2 answers requests",)
