"""A job with an endpoint follows its version into production."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.objects import START, digest, job

from finetune_api.base import Condition, ObjectMeta, VersionReference
from finetune_api.finetunejob import FineTuneJobStatus, RolloutStatus
from finetune_api.modelendpoint import (
    HeldVersion,
    ModelEndpoint,
    ModelEndpointSpec,
    ModelEndpointStatus,
    ServedVersion,
    Serving,
    StepStatus,
    VersionOutcome,
)
from finetune_api.shared_fields import NextStatus, Release
from finetune_operator.core.conditions import Summary
from finetune_operator.core.config import OperatorConfig
from finetune_operator.job.finish import conditions
from finetune_operator.job.mirror import mirror
from finetune_operator.job.observed import Observed

VERSION = VersionReference(name="router", uid="v-uid")
OURS = ServedVersion(name="router", uid="v-uid", digest=digest("a"), revision="r")
OTHER = ServedVersion(name="other", uid="o-uid", digest=digest("b"), revision="o")

NO_VERSION = Condition(type="Ready", status="False", reason="NoVersion", last_transition_time=START)
RESUME = Release(action="Resume", effect="it goes on")
HELD = HeldVersion(name="router", uid="v-uid", reason="not decided against other")


def step(stage: Any, percent: float | None = None) -> StepStatus:
    return StepStatus(stage=stage, name="step", percent=percent, start_time=START)


def outcome(what: Any, *, uid: str = "v-uid") -> VersionOutcome:
    return VersionOutcome(name="router", uid=uid, outcome=what, reason="error_rate: worse", time=START)


def endpoint(**status: Any) -> ModelEndpoint:
    return ModelEndpoint(
        metadata=ObjectMeta(name="prod", namespace="ml", uid="e-uid"),
        spec=ModelEndpointSpec(task="Chat", serving=Serving(runtime="Transformers")),
        status=ModelEndpointStatus(**{"message": "starting the servers"} | status),
    )


def observed_with(found: ModelEndpoint | None) -> Observed:
    return Observed(
        job=job(endpointRef={"name": "prod"}),
        now=START,
        config=OperatorConfig(trainer_image="trainer:1"),
        listening_since=START,
        endpoint=found,
    )


CASES = {
    "waits for another": (endpoint(phase="Canary", stable=OTHER, candidate=OTHER), "Queued", False),
    "not seen yet": (
        endpoint(phase="Empty", message="no proven version yet; apply a FineTuneJob", conditions=[NO_VERSION]),
        "Queued",
        False,
    ),
    "starting": (endpoint(phase="Shadowing", stable=OTHER, candidate=OURS, step=step("Starting")), "Shadowing", False),
    "first version": (endpoint(phase="Empty", candidate=OURS, step=step("Starting")), "Promoting", False),
    "first version, paused": (
        endpoint(phase="Empty", candidate=OURS, step=step("Starting"), next=NextStatus(release=[RESUME])),
        "Paused",
        False,
    ),
    "held": (endpoint(phase="Idle", stable=OTHER, held=HELD), "AwaitingApproval", False),
    "canary": (endpoint(phase="Canary", stable=OTHER, candidate=OURS, step=step("Canary", 10)), "Canary", False),
    "approval": (
        endpoint(phase="AwaitingApproval", stable=OTHER, candidate=OURS, step=step("Approval", 10)),
        "AwaitingApproval",
        False,
    ),
    "paused": (endpoint(phase="Paused", stable=OTHER, candidate=OURS, step=step("Canary", 10)), "Paused", False),
    "guard": (
        endpoint(
            phase="Guarding", stable=OURS, previous=OTHER, step=step("Guard", 100), versions=[outcome("Promoted")]
        ),
        "Guarding",
        True,
    ),
    "guard over": (endpoint(phase="Idle", stable=OURS, versions=[outcome("Promoted")]), "Succeeded", True),
    "long since replaced": (
        endpoint(phase="Guarding", stable=OTHER, step=step("Guard", 100), versions=[outcome("Promoted")]),
        "Succeeded",
        True,
    ),
    "rejected": (endpoint(phase="Idle", stable=OTHER, versions=[outcome("Rejected")]), "Rejected", False),
    "superseded": (endpoint(phase="Shadowing", stable=OTHER, versions=[outcome("Superseded")]), "Superseded", False),
    "rolled back": (
        endpoint(phase="RollingBack", stable=OTHER, versions=[outcome("Promoted"), outcome("RolledBack")]),
        "RolledBack",
        False,
    ),
    "no such endpoint": (None, "Failed", False),
}


WORDS = {
    "first version": "router is the first version of prod, with nothing to compare it with: starting the servers",
    "waits for another": "router waits for its turn at prod: starting the servers",
    "not seen yet": "router waits for its turn at prod",
    "guard over": "router serves prod",
    "long since replaced": "router was promoted at prod, where other serves now",
}


@pytest.mark.parametrize("name", CASES)
def test_the_job_shows_where_its_version_is(name: str) -> None:
    found, phase, promoted = CASES[name]
    draft = mirror(observed=observed_with(found), status=FineTuneJobStatus(), version=VERSION)
    assert draft.phase == phase
    if words := WORDS.get(name):
        assert draft.summary.message == words
    assert (draft.status.rollout is not None and draft.status.rollout.promoted) == promoted
    assert bool(draft.look_again) == (phase not in ("Succeeded", "Rejected", "Superseded", "RolledBack", "Failed"))


def test_a_version_that_a_pin_keeps_out_says_so() -> None:
    """It would wait for ever for a turn that never comes."""
    found = endpoint(phase="Idle", stable=OTHER, message="other serves all requests")
    pinned = found.model_copy(update={"spec": found.spec.model_copy(update={"version": "other"})})
    draft = mirror(observed=observed_with(pinned), status=FineTuneJobStatus(), version=VERSION)
    assert draft.phase == "Queued"
    assert "is not tried while spec.version of prod pins other" in draft.summary.message
    assert draft.next is not None
    assert draft.next.waits_for == ["spec.version of prod to name it, or nothing"]
    assert [each.action for each in draft.next.release] == ["Unpin"]


def test_the_job_of_a_version_that_was_deleted_while_it_waited_for_its_turn_ends() -> None:
    found = observed_with(endpoint(phase="Canary", stable=OTHER, candidate=OTHER))
    draft = mirror(observed=found, status=FineTuneJobStatus(), version=VERSION, deleted=True)
    assert (draft.phase, draft.summary.message) == ("Rejected", "router was deleted before prod tried it")


@pytest.mark.parametrize(
    ("reason", "promoted", "expected"),
    [
        ("Promoting", False, ("False", "Promoting")),
        ("Succeeded", True, ("True", "Serving")),
        ("RolledBack", True, ("True", "RolledBack")),
        ("Rejected", False, ("False", "Rejected")),
    ],
)
def test_the_condition_of_a_promotion_says_the_same_as_the_phase(
    reason: str, promoted: bool, expected: tuple[str, str]
) -> None:
    rollout = RolloutStatus(endpoint="prod", phase="Empty", promoted=promoted)
    found = conditions(
        status=FineTuneJobStatus(rollout=rollout),
        summary=Summary(state="Stalled", reason=reason, message=""),
        suspended=False,
        void="",
        generation=1,
        now=START,
    )
    assert [(each.status, each.reason) for each in found if each.type == "Promoted"] == [expected]


@pytest.mark.parametrize(
    ("what", "words"),
    [("RolledBack", "was rolled back"), ("Rejected", "was rejected"), ("Superseded", "was superseded")],
)
def test_a_version_that_was_given_up_is_told_with_what_became_of_it(what: Any, words: str) -> None:
    found = endpoint(phase="Idle", stable=OTHER, versions=[outcome(what)])
    draft = mirror(observed=observed_with(found), status=FineTuneJobStatus(), version=VERSION)
    assert draft.summary.message == f"router {words} at prod: error_rate: worse (by operator)"
