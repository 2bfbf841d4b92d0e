"""A run that failed and is to go on: what is kept, what begins anew, and where that cannot help."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.conformance.objects import CONFIG, START, evaluate_result, job, plan_of, prepare_result, train_result

from finetune_api.finetunejob import RETRY, FineTuneJob, FineTuneJobStatus
from finetune_api.stage_reasons import STAGE_REASONS, needs_another_run
from finetune_operator.core.reasons import Reason
from finetune_operator.job.decide import decide
from finetune_operator.job.decision import Decision
from finetune_operator.job.observed import Observed
from finetune_operator.job.retry import end_of, is_asked, useless

END = "2026-01-05T12:01:40Z"
PREPARED = {"name": "Prepare", "state": "Complete", "attempt": 1, "result": prepare_result().to_dict()}
FAILED = {"name": "Train", "state": "Failed", "attempt": 3, "childUid": "c3", "activeSeconds": 70}
RESTARTS = {"failures": 3, "preemptions": 4, "stepsLost": 5, "rapid": 2, "nodes": ["n1"]}


def failed(reason: str = "ContainerFailed", *, asked: str = END, phase: str = "Failed", **status: Any) -> FineTuneJob:
    """A job that failed in its training, and what the annotation says."""
    of = job(**status.pop("spec", {}))
    ready = {"type": "Ready", "status": "False", "reason": reason, "message": "m"}
    known = {
        "observedGeneration": 1,
        "phase": phase,
        "phaseStartTime": END,
        "startTime": "2026-01-05T12:00:00Z",
        "completionTime": END,
        "plan": plan_of(of).to_dict(),
        "stages": [PREPARED, FAILED],
        "restarts": RESTARTS | {"last": {"reason": reason, "time": END}},
        "checkpoint": {"uri": "pvc://models/c/step-10", "step": 10},
        "conditions": [ready],
    }
    metadata = of.metadata.model_copy(update={"annotations": {RETRY: asked} if asked else {}})
    parsed = FineTuneJobStatus.model_validate({**known, **status})
    return of.model_copy(update={"metadata": metadata, "status": parsed})


def look(of: FineTuneJob, *, seconds: float = 200, **more: Any) -> Decision:
    now = START + timedelta(seconds=seconds)
    return decide(Observed(job=of, now=now, config=CONFIG, listening_since=START, **more))


def goes_on(of: FineTuneJob) -> FineTuneJobStatus:
    assert is_asked(of)
    found = look(of)
    assert found.requeue_seconds == 0
    assert found.status is not None
    return found.status


def test_another_attempt_of_the_stage_that_failed_has_fresh_budgets() -> None:
    status = goes_on(failed())
    assert status.phase == "Training"
    assert status.completion_time is None
    assert [(each.name, each.state, each.attempt) for each in status.stages] == [
        ("Prepare", "Complete", 1),
        ("Train", "Pending", 4),
    ]
    train = status.stage("Train")
    assert train is not None
    assert (train.previous_child_uid, train.active_seconds) == ("c3", 70)
    assert status.restarts is not None
    assert status.restarts.to_dict() == {"failures": 0, "preemptions": 0, "stepsLost": 5, "rapid": 0, "nodes": []}
    assert status.checkpoint is not None
    assert status.condition("Stalled") is None


def test_the_wish_is_carried_out_once() -> None:
    of = failed()
    status = goes_on(of)
    later = of.model_copy(update={"status": status})
    following = look(later, seconds=201)
    assert [each["metadata"]["name"] for each in following.create][-1] == "router-train-4"
    again = failed(completionTime="2026-01-05T12:05:00Z")
    assert not is_asked(again)
    assert look(again, seconds=400).status is None or look(again, seconds=400).status.condition("RequestVoid") is None  # type: ignore[union-attr]


def test_no_two_ends_have_one_time() -> None:
    """Times are of whole seconds: a run that fails at once ends in a later one."""
    found = look(failed(), seconds=100.4)
    assert found.status is None or found.status.phase == "Failed"
    assert found.requeue_seconds == pytest.approx(0.6)


def test_before_its_plan_it_waits_anew_for_what_it_names() -> None:
    of = failed("ClaimNotFound", plan=None, stages=[], restarts=None, checkpoint=None)
    status = goes_on(of)
    assert (status.phase, status.start_time, status.plan) == ("Pending", None, None)
    waits = look(of.model_copy(update={"status": status}), claims=()).status
    assert waits is not None
    assert waits.phase == "Pending"
    assert waits.start_time == START + timedelta(seconds=200)


def test_one_whose_endpoint_was_gone_goes_on_with_its_version() -> None:
    done = [
        {"name": each.stage, "state": "Complete", "attempt": 1, "result": each.to_dict()}
        for each in (prepare_result(), train_result(), evaluate_result())
    ]
    status = goes_on(failed("EndpointNotFound", stages=done, modelVersion={"name": "router", "uid": "v"}))
    assert status.phase == "Evaluating"
    assert all(stage.state == "Complete" for stage in status.stages)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (failed("LossNotFinite"), "LossNotFinite lies in the spec or in what the run has recorded"),
        (failed("DataTorn"), "apply it as a job of another name"),
        (failed("GateFailed", phase="Rejected"), "Rejected is what the run came to"),
        (failed("Succeeded", phase="Succeeded"), "Succeeded is what the run came to"),
        (
            failed("DeadlineExceeded", activeSeconds=60, spec={"activeDeadlineSeconds": 60}),
            "spec.activeDeadlineSeconds (60) is used up: raise it",
        ),
        (failed(asked="true"), f"finetune.dev/retry: true is not the time of its end (status.completionTime: {END})"),
    ],
)
def test_where_it_cannot_help_it_says_so(of: FineTuneJob, words: str) -> None:
    assert not is_asked(of)
    found = look(of).status
    assert found is not None
    assert found.phase == of.status.phase
    condition = found.condition(Reason.REQUEST_VOID)
    assert condition is not None
    assert words in condition.message
    settled = of.model_copy(update={"status": found})
    assert look(settled).status is None, "it is said once"


def test_a_deadline_that_was_raised() -> None:
    of = failed("DeadlineExceeded", activeSeconds=60, spec={"activeDeadlineSeconds": 600})
    assert useless(of) == ""


@pytest.mark.parametrize("reason", ["InputNotFound", "ImagePullFailed", "ContainerConfigInvalid", "CannotWrite"])
def test_what_may_be_mended_outside_is_tried_again(reason: str) -> None:
    assert useless(failed(reason)) == ""


def test_what_asks_for_a_new_run_is_not_tried_again() -> None:
    told = {name for name, (_, out) in STAGE_REASONS.items() if out == "start a new run"}
    assert told
    assert all(map(needs_another_run, told))


def test_only_an_end_has_a_time() -> None:
    assert end_of(failed()) == END
    assert end_of(failed(phase="Training", completionTime=None)) == ""
