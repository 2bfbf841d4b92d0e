"""Whatever is seen, in whatever order: what always holds of a job's decisions."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.objects import CONFIG, START, evaluate_result, job, prepare_result, train_result

from finetune_api.finetunejob import STAGES, TERMINAL_PHASES, FineTuneJob, FineTuneJobStatus, TrainerStatus
from finetune_api.modelversion import ModelVersion
from finetune_api.results import Failure
from finetune_operator.attempts.judge import may_run
from finetune_operator.attempts.observed import Attempt, AttemptKey, ChildJob
from finetune_operator.attempts.pods import Ended, PodState
from finetune_operator.core.controller import ChildRef
from finetune_operator.core.ports import Progress
from finetune_operator.job.decide import decide
from finetune_operator.job.decision import Decision
from finetune_operator.job.observed import Observed, ObservedClaim

RESULTS = {"Prepare": prepare_result(), "Train": train_result(), "Evaluate": evaluate_result()}
FAILURES = ("StoppedAfterCheckpoint", "Stopped", "PeerLost", "LossNotFinite", "OutOfMemory", "InputNotFound")


@st.composite
def pods(draw: st.DrawFn, *, index: int, stage: str, now: datetime) -> PodState:
    """A pod in any state that Kubernetes knows."""
    created = now - timedelta(seconds=draw(st.integers(0, 400)))
    shape = draw(st.sampled_from(["new", "homeless", "waiting", "running", "succeeded", "failed", "evicted"]))
    pod = PodState(name=f"p{index}", index=index, created=created)
    if shape == "homeless":
        return replace(pod, unschedulable="no room")
    if shape == "waiting":
        words = st.sampled_from(
            ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", ""]
        )
        return replace(pod, scheduled=created, waiting_reason=draw(words))
    if shape in ("running", "succeeded", "failed"):
        pod = replace(pod, scheduled=created, started=created, phase="Running")
    if shape == "succeeded":
        ended = Ended(exit_code=0, message=draw(st.sampled_from([text_of(stage), "", "junk"])), finished=now)
        pod = replace(pod, phase="Succeeded", ended=ended)
    if shape == "failed":
        code = draw(st.sampled_from([1, 65, 66, 70, 73, 75, 78, 137]))
        said = draw(st.sampled_from(["", *FAILURES]))
        step = draw(st.none() | st.integers(0, 200))
        message = Failure(reason=said, message="m", checkpoint_step=step).model_dump_json(by_alias=True) if said else ""
        word = draw(st.sampled_from(["Error", "OOMKilled", "ContainerStatusUnknown"]))
        pod = replace(pod, phase="Failed", ended=Ended(exit_code=code, reason=word, message=message, finished=now))
    if shape == "evicted":
        pod = replace(pod, phase="Failed", disruption="Evicted")
    if draw(st.booleans()) and draw(st.booleans()):
        requested = now - timedelta(seconds=draw(st.integers(0, 400)))
        lost = "DeletionByTaintManager" if draw(st.booleans()) else pod.disruption
        pod = replace(
            pod, deletion_requested=requested, deletion_due=requested + timedelta(seconds=120), disruption=lost
        )
    return pod


def done(*, index: int, stage: str, now: datetime) -> PodState:
    """A pod that has ended well."""
    ended = Ended(exit_code=0, message=text_of(stage), finished=now)
    return PodState(name=f"p{index}", index=index, phase="Succeeded", created=now, started=now, ended=ended)


def text_of(stage: str) -> str:
    return RESULTS[stage].model_dump_json(by_alias=True, exclude_none=True)


@st.composite
def attempts(draw: st.DrawFn, *, key: AttemptKey, size: int, now: datetime) -> Attempt:
    """The children of an attempt: a Job or none, pods or none, in any combination."""
    if draw(st.integers(0, 2)) == 0:
        return Attempt(pods=tuple(done(index=index, stage=key[0], now=now) for index in range(size)))
    found = tuple(
        draw(pods(index=index, stage=key[0], now=now)) for index in range(size) if draw(st.integers(0, 9)) > 0
    )
    if draw(st.integers(0, 9)) == 0:
        return Attempt(pods=found)
    failed = draw(st.integers(0, 4)) == 0
    made = ChildJob(
        ref=ChildRef(kind="Job", namespace="ml", name=f"router-{key[0].lower()}-{key[1]}", uid=f"{key}"),
        created=now - timedelta(seconds=draw(st.integers(0, 400))),
        suspended=draw(st.integers(0, 9)) == 0,
        deleting=draw(st.integers(0, 9)) == 0,
        complete=not failed and draw(st.integers(0, 9)) == 0,
        failed=failed,
        failed_since=now if failed else None,
        failure_reason=draw(st.sampled_from(["PodFailurePolicy", "BackoffLimitExceeded"])) if failed else "",
        failure_message=f"FailJob rule at index {draw(st.integers(0, 2))}" if failed else "",
    )
    return Attempt(job=made, pods=found)


@st.composite
def sights(draw: st.DrawFn, *, run: FineTuneJob, now: datetime, decision: Decision | None) -> Observed:
    """Something that could be seen of this job now: what there is of its attempts, and of the world around it."""
    status = run.status
    size = (run.spec.compute.nodes if run.spec.compute else None) or 1
    found: dict[AttemptKey, Attempt] = {}
    for stage in status.stages:
        # What was created must be there, or was taken away; what never was cannot be.
        begun = stage.state not in ("Pending",) or (decision is not None and bool(decision.create))
        for number in range(max(1, stage.attempt - 1), stage.attempt + 1):
            if number < stage.attempt or begun:
                pods_of_stage = size if stage.name == "Train" else 1
                found[stage.name, number] = draw(attempts(key=(stage.name, number), size=pods_of_stage, now=now))
    versions: tuple[ModelVersion, ...] = ()
    if decision is not None and decision.create and decision.create[0]["kind"] == "ModelVersion":
        manifest = decision.create[0]
        versions = (ModelVersion.model_validate({**manifest, "metadata": {**manifest["metadata"], "uid": "v1"}}),)
    progress = None
    if draw(st.booleans()):
        metrics = [
            {"name": "step", "value": str(draw(st.integers(0, 500)))},
            {"name": "checkpoint_step", "value": "20"},
        ]
        shown = TrainerStatus.model_validate({"metrics": metrics})
        progress = Progress(status=shown, received=now - timedelta(seconds=draw(st.integers(0, 400))))
    return Observed(
        job=run.model_copy(update={"spec": run.spec.model_copy(update={"suspend": draw(st.integers(0, 5)) == 0})}),
        now=now,
        config=CONFIG,
        attempts=found,
        claims=(ObservedClaim(name="models", exists=draw(st.integers(0, 5)) > 0, access_modes=("ReadWriteMany",)),),
        versions=versions,
        progress=progress,
        listening_since=START,
    )


def check(observed: Observed, decision: Decision) -> None:
    """What holds of every single decision."""
    before, after = observed.job.status, decision.status or observed.job.status
    true = {condition.type for condition in after.conditions if condition.status == "True"}
    if after.conditions:
        assert len(true & {"Ready", "Reconciling", "Stalled"}) == 1
    if before.phase in TERMINAL_PHASES:
        assert after.phase == before.phase
        assert (after.evaluation, after.model_version) == (before.evaluation, before.model_version)
        assert decision.create == ()
    if after.phase in TERMINAL_PHASES:
        assert after.completion_time is not None
    _check_transitions(before, after)
    _check_stages(before, after)
    _check_creation(observed, decision)
    _check_progress_is_possible(observed, decision, after)


def _check_transitions(before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
    for condition in after.conditions:
        old = before.condition(condition.type)
        if old is not None and old.status == condition.status:
            assert condition.last_transition_time == old.last_transition_time
    if before.phase == after.phase:
        assert before.phase_start_time == after.phase_start_time


def _check_stages(before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
    assert [stage.name for stage in after.stages] == list(STAGES[: len(after.stages)])
    for old in before.stages:
        new = after.stage(old.name)
        assert new is not None
        assert new.attempt >= old.attempt
        if old.state == "Complete":
            assert new == old, "what is recorded stays"
    if before.restarts is not None:
        assert after.restarts is not None
        assert after.restarts.preemptions >= before.restarts.preemptions
        assert after.restarts.failures >= before.restarts.failures
        assert after.restarts.steps_lost >= before.restarts.steps_lost


def _check_creation(observed: Observed, decision: Decision) -> None:
    jobs = [manifest for manifest in decision.create if manifest["kind"] == "Job"]
    if not jobs:
        return
    (made,) = jobs
    labels = made["metadata"]["labels"]
    key = (labels["finetune.dev/stage"], int(labels["finetune.dev/attempt"]))
    recorded = {(stage.name, stage.attempt) for stage in observed.job.status.stages}
    assert key in recorded, "an attempt is recorded before it is made"
    assert not observed.job.spec.suspend
    for other, attempt in observed.attempts.items():
        if other != key:
            assert not any(may_run(pod=pod, now=observed.now, config=CONFIG) for pod in attempt.pods)


def _check_progress_is_possible(observed: Observed, decision: Decision, after: FineTuneJobStatus) -> None:
    """It has ended, or something will make it move: a time, a child, the user, another operator."""
    waits_for_child = any(attempt.job or attempt.pods for attempt in observed.attempts.values()) or decision.create
    waits_for_user = after.condition("Suspended") is not None
    moves = decision.requeue_seconds is not None or waits_for_child or waits_for_user
    assert after.phase in TERMINAL_PHASES or moves, after.to_dict()


@settings(max_examples=1000 if os.environ.get("FINETUNE_ALL_TESTS") else 75, deadline=None)
@given(data=st.data())
def test_any_sequence_of_sights(data: st.DataObject) -> None:
    changes: dict[str, Any] = {
        "compute": {"nodes": data.draw(st.sampled_from([1, 2]))},
        "failurePolicy": {"maxFailures": 2, "maxPreemptions": 3, "hangSeconds": 300},
    }
    if data.draw(st.booleans()):
        changes["activeDeadlineSeconds"] = data.draw(st.integers(1, 2000))
    run, now, decision = job(**changes), START, None
    ends = 0
    for _ in range(data.draw(st.integers(5, 30))):
        now += timedelta(seconds=data.draw(st.integers(0, 400)))
        observed = data.draw(sights(run=run, now=now, decision=decision))
        decision = decide(observed)
        assert decide(observed) == decision, "the same sight, the same answer"
        check(observed, decision)
        if decision.status is not None:
            stored = FineTuneJobStatus.model_validate(decision.status.to_dict())
            run = run.model_copy(update={"status": stored})
            if decision.requeue_seconds != 0 and not decision.create:
                again = decide(replace(observed, job=observed.job.model_copy(update={"status": stored})))
                assert again.status is None, "what is written need not be written again"
        ends += run.status.phase in TERMINAL_PHASES
        if ends > 3:
            break
