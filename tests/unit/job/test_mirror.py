"""A job with an endpoint follows its version into production."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.objects import START, digest, job

from finetune_api.base import ObjectMeta, VersionReference
from finetune_api.finetunejob import FineTuneJobStatus
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
from finetune_operator.config import OperatorConfig
from finetune_operator.job.mirror import mirror
from finetune_operator.job.observed import Observed

VERSION = VersionReference(name="router", uid="v-uid")
OURS = ServedVersion(name="router", uid="v-uid", digest=digest("a"), revision="r")
OTHER = ServedVersion(name="other", uid="o-uid", digest=digest("b"), revision="o")

HELD = HeldVersion(name="router", uid="v-uid", reason="not decided against other")


def step(stage: Any, percent: float | None = None) -> StepStatus:
    return StepStatus(stage=stage, name="step", percent=percent, start_time=START)


def outcome(what: Any, *, uid: str = "v-uid") -> VersionOutcome:
    return VersionOutcome(name="router", uid=uid, outcome=what, reason="error_rate: worse", time=START)


def endpoint(**status: Any) -> ModelEndpoint:
    return ModelEndpoint(
        metadata=ObjectMeta(name="prod", namespace="ml", uid="e-uid"),
        spec=ModelEndpointSpec(task="Chat", serving=Serving(runtime="Transformers")),
        status=ModelEndpointStatus(**status),
    )


CASES = {
    "waits for another": (endpoint(phase="Canary", stable=OTHER, candidate=OTHER), "Queued", False),
    "starting": (endpoint(phase="Shadowing", stable=OTHER, candidate=OURS, step=step("Starting")), "Shadowing", False),
    "first version": (endpoint(phase="Empty", candidate=OURS, step=step("Starting")), "Shadowing", False),
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


@pytest.mark.parametrize("name", CASES)
def test_the_job_shows_where_its_version_is(name: str) -> None:
    found, phase, promoted = CASES[name]
    observed = Observed(
        job=job(endpointRef={"name": "prod"}),
        now=START,
        config=OperatorConfig(trainer_image="trainer:1"),
        listening_since=START,
        endpoint=found,
    )
    draft = mirror(observed=observed, status=FineTuneJobStatus(), version=VERSION)
    assert draft.phase == phase
    assert (draft.status.rollout is not None and draft.status.rollout.promoted) == promoted
    assert bool(draft.look_again) == (phase not in ("Succeeded", "Rejected", "Superseded", "RolledBack", "Failed"))
