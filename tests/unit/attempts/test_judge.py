"""How an attempt is judged by its Job and its pods: the evidence table."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.conformance.objects import CONFIG, START, prepare_result, train_result

from finetune_api.results import Failure
from finetune_operator.attempts.judge import judge, last_end, may_run
from finetune_operator.attempts.observed import Attempt, ChildJob, read_job
from finetune_operator.attempts.pods import Ended, PodState, read_pod
from finetune_operator.attempts.restarts import Cause
from finetune_operator.attempts.verdicts import Absent, Broken, Running, Stopping, Succeeded, Verdict, Waiting
from finetune_operator.core.controller import ChildRef

JOB = ChildJob(ref=ChildRef(kind="Job", namespace="ml", name="router-train-1", uid="j"), created=START)
DONE = Ended(exit_code=0, reason="Completed", message=train_result().model_dump_json(by_alias=True, exclude_none=True))


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def pod(index: int = 0, **parts: Any) -> PodState:
    return PodState(name=f"p{index}", index=index, created=START, **parts)


def running(index: int = 0, **parts: Any) -> PodState:
    return pod(index, phase="Running", scheduled=at(1), started=at(10), **parts)


def failed(code: int, *, index: int = 0, finished: float = 60, said: Failure | None = None, **parts: Any) -> PodState:
    reason = parts.pop("word", "Error")
    message = said.model_dump_json(by_alias=True, exclude_none=True) if said else ""
    ended = Ended(exit_code=code, reason=reason, message=message, finished=at(finished))
    return pod(index, phase="Failed", scheduled=at(1), started=at(10), ended=ended, **parts)


def deleting(state: PodState, *, requested: float, grace: float = 120) -> PodState:
    return replace(state, deletion_requested=at(requested), deletion_due=at(requested + grace))


def verdict(*pods: PodState, job: ChildJob | None = JOB, size: int | None = None, now: float = 70) -> Verdict:
    return judge(
        attempt=Attempt(job=job, pods=pods), stage="Train", size=size or max(1, len(pods)), now=at(now), config=CONFIG
    )


def said(reason: str, *, step: int | None = None) -> Failure:
    return Failure(reason=reason, message=f"because of {reason}", checkpoint_step=step)


# -- the good end, and what can go wrong with it ----------------------------------------------------------------------


def test_all_pods_done_is_enough_before_the_job_says_so() -> None:
    assert verdict(pod(phase="Succeeded", ended=DONE)) == Succeeded(result=train_result())


def test_one_pod_done_of_two_is_not_the_end() -> None:
    assert isinstance(verdict(pod(phase="Succeeded", ended=DONE), running(1)), Running | Waiting)


def test_a_complete_job_without_its_pod_lost_the_result() -> None:
    found = verdict(job=replace(JOB, complete=True))
    assert isinstance(found, Broken)
    assert found.cause is Cause.RESULT_LOST
    assert found.saved_all, "its output is complete: no step of it is done again"


@pytest.mark.parametrize("message", ["", "Traceback ...", prepare_result().model_dump_json(by_alias=True)])
def test_a_result_that_is_none_is_a_failure(message: str) -> None:
    found = verdict(pod(phase="Succeeded", ended=Ended(exit_code=0, message=message)))
    assert isinstance(found, Broken)
    assert (found.cause, found.reason) == (Cause.CONTAINER_FAILED, "InvalidResult")


def test_why_a_container_could_not_be_started_is_told() -> None:
    ended = Ended(exit_code=128, reason="StartError", message='exec: "pythn": executable file not found in $PATH')
    found = verdict(pod(phase="Failed", ended=ended))
    assert isinstance(found, Broken)
    assert (found.cause, found.reason) == (Cause.CONTAINER_FAILED, "StartError")
    assert found.message.endswith(f"could not be started: {ended.message}")


# -- causes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pods", "cause", "reason"),
    [
        ([failed(75, said=said("StoppedAfterCheckpoint", step=7))], Cause.PREEMPTED, "Preempted"),
        ([failed(137, word="OOMKilled")], Cause.OUT_OF_MEMORY, "OutOfMemory"),
        ([failed(70, said=said("OutOfMemory"))], Cause.OUT_OF_MEMORY, "OutOfMemory"),
        ([failed(65, said=said("TooManyBadRows"))], Cause.PERMANENT, "TooManyBadRows"),
        ([failed(66, said=said("InputNotFound"))], Cause.PERMANENT, "InputNotFound"),
        ([failed(78)], Cause.PERMANENT, "ExitCode78"),
        ([failed(70, said=said("LossNotFinite"))], Cause.NOT_FINITE, "LossNotFinite"),
        ([failed(73, said=said("CannotWrite"))], Cause.CONTAINER_FAILED, "CannotWrite"),
        ([failed(73)], Cause.CONTAINER_FAILED, "CannotWrite"),
        ([failed(1)], Cause.CONTAINER_FAILED, "ExitCode1"),
        ([failed(137)], Cause.CONTAINER_FAILED, "ExitCode137"),
        ([failed(137, word="ContainerStatusUnknown")], Cause.NODE_LOST, "NodeLost"),
        ([deleting(failed(137), requested=50)], Cause.POD_DELETED, "PodDeleted"),
        ([failed(137, disruption="EvictionByEvictionAPI")], Cause.PREEMPTED, "Preempted"),
        ([pod(phase="Failed", disruption="Evicted")], Cause.PREEMPTED, "Preempted"),
        ([pod(phase="Failed", disruption="OutOfcpu")], Cause.PREEMPTED, "Preempted"),
        ([failed(255, disruption="DeletionByPodGC")], Cause.NODE_LOST, "NodeLost"),
        # Of several pods: the most specific cause, not its echo.
        (
            [failed(70, said=said("PeerLost")), failed(137, index=1, word="OOMKilled")],
            Cause.OUT_OF_MEMORY,
            "OutOfMemory",
        ),
        ([failed(70, said=said("PeerLost")), failed(1, index=1, finished=65)], Cause.CONTAINER_FAILED, "ExitCode1"),
        # The others are told to stop because one has failed: their 75 is an echo.
        (
            [failed(1, finished=50), deleting(failed(75, index=1, finished=60), requested=52)],
            Cause.CONTAINER_FAILED,
            "ExitCode1",
        ),
        # One is deleted, and the other fails because of it.
        (
            [failed(1, finished=58), deleting(failed(75, index=1, finished=57), requested=50)],
            Cause.PREEMPTED,
            "Preempted",
        ),
        ([failed(1, finished=50), failed(78, index=1, finished=60)], Cause.PERMANENT, "ExitCode78"),
    ],
)
def test_the_cause_of_an_end(pods: list[PodState], cause: Cause, reason: str) -> None:
    found = verdict(*pods)
    assert isinstance(found, Broken)
    assert (found.cause, found.reason) == (cause, reason)


def test_a_lost_peer_whose_pod_is_gone_was_deleted() -> None:
    found = verdict(failed(70, said=said("PeerLost")), job=replace(JOB, failed=True, failed_since=at(60)), size=2)
    assert isinstance(found, Broken)
    assert found.cause is Cause.POD_DELETED


def test_a_pod_that_its_job_ended_was_not_deleted() -> None:
    peer = failed(70, said=said("PeerLost"))
    attempt = Attempt(job=replace(JOB, failed=True, failed_since=at(60)), pods=(peer,), ended_by_job=frozenset({"q"}))
    found = judge(attempt=attempt, stage="Train", size=2, now=at(70), config=CONFIG)
    assert isinstance(found, Broken)
    assert (found.cause, found.reason) == (Cause.CONTAINER_FAILED, "PeerLost")
    itself = replace(attempt, ended_by_job=frozenset({peer.name}))
    found = judge(attempt=itself, stage="Train", size=2, now=at(70), config=CONFIG)
    assert isinstance(found, Broken)
    assert found.cause is Cause.POD_DELETED, "it is there; of the other one its Job knows nothing"


@pytest.mark.parametrize(
    ("reason", "message", "cause", "saved"),
    [
        ("PodFailurePolicy", "Container trainer ... FailJob rule at index 0", Cause.PREEMPTED, True),
        ("PodFailurePolicy", "Container trainer ... FailJob rule at index 1", Cause.PERMANENT, False),
        ("PodFailurePolicy", "Pod ml/p has condition ... FailJob rule at index 2", Cause.PREEMPTED, False),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", Cause.POD_DELETED, False),
    ],
)
def test_the_job_remembers_what_its_pods_cannot_say(reason: str, message: str, cause: Cause, saved: bool) -> None:
    job = replace(JOB, failed=True, failed_since=at(60), failure_reason=reason, failure_message=message)
    found = verdict(job=job)
    assert isinstance(found, Broken)
    assert (found.cause, found.saved_all) == (cause, saved)


def test_what_was_saved_is_believed() -> None:
    saved = verdict(failed(75, said=said("StoppedAfterCheckpoint", step=41)))
    assert isinstance(saved, Broken)
    assert (saved.saved_all, saved.checkpoint_step) == (True, 41)
    unsaved = verdict(failed(75, said=said("Stopped")))
    assert isinstance(unsaved, Broken)
    assert not unsaved.saved_all


# -- the cause is judged when the gang has ended ----------------------------------------------------------------------


def test_a_gang_is_judged_when_all_of_it_has_ended() -> None:
    found = verdict(failed(1, finished=60), running(1), now=70)
    assert found == Stopping(message="1 pod still ending", look_again=at(60 + CONFIG.evidence_seconds))


def test_a_pod_that_nobody_ends_does_not_hold_up_the_judgement_for_ever() -> None:
    found = verdict(failed(1, finished=60), running(1), now=60 + CONFIG.evidence_seconds)
    assert isinstance(found, Broken)


def test_a_pod_that_is_being_deleted_ends_first() -> None:
    found = verdict(deleting(running(), requested=60), now=100)
    assert isinstance(found, Stopping)
    assert found.look_again == at(60 + 120 + CONFIG.lost_pod_seconds)


def test_a_pod_on_a_lost_node_is_not_waited_for_to_the_end_of_its_grace() -> None:
    lost = deleting(running(disruption="DeletionByTaintManager"), requested=60)
    assert isinstance(verdict(lost, now=60 + CONFIG.lost_pod_seconds - 1), Stopping)
    found = verdict(lost, now=60 + CONFIG.lost_pod_seconds)
    assert isinstance(found, Broken)
    assert found.cause is Cause.NODE_LOST


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (running(), True),
        (pod(), True),
        (failed(1), False),
        (deleting(running(), requested=0), True),
        (deleting(running(), requested=-1000), False),
    ],
)
def test_whether_a_pod_may_still_run(state: PodState, expected: bool) -> None:
    assert may_run(pod=state, now=at(100), config=CONFIG) is expected


# -- on the way -------------------------------------------------------------------------------------------------------


def test_no_job_and_no_pods_is_absent() -> None:
    assert verdict(job=None) == Absent()
    assert verdict(failed(1), job=None) == Absent()
    assert isinstance(verdict(running(), job=None), Stopping)


def test_all_pods_run_since_the_last_one_started() -> None:
    assert verdict(running(), replace(running(1), started=at(20))) == Running(since=at(20))


@pytest.mark.parametrize(
    ("pods", "now", "reason", "queued"),
    [
        ([], 5, "Starting", False),
        ([], 11, "PodsNotCreated", True),
        ([pod(scheduled=START)], 70, "Starting", False),
        ([pod(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")], 9e9, "Unschedulable", True),
        (
            [pod(scheduled=START, waiting_reason="ErrImagePull", waiting_message='rpc error: image "x/y:1" not found')],
            70,
            "ImagePullFailing",
            False,
        ),
        (
            [
                pod(
                    scheduled=START,
                    waiting_reason="CreateContainerConfigError",
                    waiting_message='secret "s3" not found',
                )
            ],
            70,
            "ContainerConfigInvalid",
            False,
        ),
        ([running(), pod(1, unschedulable="no room")], 70, "Unschedulable", True),
        ([running(), pod(1, scheduled=START)], 70, "Starting", False),
    ],
)
def test_what_it_waits_for(pods: list[PodState], now: float, reason: str, queued: bool) -> None:
    found = verdict(*pods, now=min(now, 1e7))
    assert isinstance(found, Waiting)
    assert (found.reason, found.queued) == (reason, queued)


def test_kubelets_two_words_for_one_problem_are_one_message() -> None:
    first = verdict(pod(scheduled=START, waiting_reason="ErrImagePull", waiting_message='failed to pull "x/y:1": 404'))
    then = verdict(pod(scheduled=START, waiting_reason="ImagePullBackOff", waiting_message='Back-off pulling "x/y:1"'))
    assert first == then


@pytest.mark.parametrize(
    ("reason", "now", "cause"),
    [
        ("ImagePullBackOff", CONFIG.image_pull_deadline_seconds, Cause.IMAGE),
        ("InvalidImageName", 1, Cause.IMAGE),
        ("CreateContainerConfigError", CONFIG.image_pull_deadline_seconds, Cause.CONTAINER_CONFIG),
        ("ContainerCreating", CONFIG.start_deadline_seconds, Cause.NOT_STARTED),
    ],
)
def test_what_never_starts_ends(reason: str, now: float, cause: Cause) -> None:
    found = verdict(pod(scheduled=START, waiting_reason=reason), now=now)
    assert isinstance(found, Broken)
    assert found.cause is cause


def test_a_suspended_job_is_queued_whatever_its_old_pods_do() -> None:
    job = replace(JOB, suspended=True)
    assert verdict(job=job) == Waiting(reason="Queued", message="", queued=True, about="j")
    assert isinstance(verdict(deleting(failed(75), requested=50), job=job), Waiting)


def test_the_end_of_an_attempt() -> None:
    assert last_end(attempt=Attempt(job=JOB, pods=(failed(1, finished=60), failed(1, index=1, finished=62)))) == at(62)
    assert last_end(attempt=Attempt(job=JOB, pods=(failed(1, finished=60), running(1)))) is None
    assert last_end(attempt=Attempt(job=replace(JOB, failed=True, failed_since=at(61)))) == at(61)
    assert last_end(attempt=Attempt()) is None


# -- waiting, told truly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "now", "message", "about"),
    [
        (pod(scheduled=START, uid="u"), 5, "", ""),
        (pod(scheduled=START, uid="u"), 11, "pod p0: its containers are being made", "u"),
        (pod(scheduled=START, uid="u", initialising="fetch"), 11, "pod p0: init container fetch is running", ""),
        (pod(scheduled=START, uid="u", trouble="init container x ended"), 5, "pod p0: init container x ended", ""),
        # The scheduler is silent while a volume is made for the pod.
        (pod(uid="u"), 29, "pod p0: its containers are being made", "u"),
        (pod(uid="u"), 30, "1 pod of 1 waiting for a node", "u"),
        (pod(unschedulable="no room", uid="u"), 5, "1 pod of 1 waiting for a node: no room", ""),
        (
            pod(unschedulable="pod has unbound immediate PersistentVolumeClaims", uid="u"),
            5,
            "1 pod of 1 waiting for a node: pod has unbound immediate PersistentVolumeClaims",
            "u",
        ),
    ],
)
def test_what_holds_a_pod_up_is_said_and_who_knows_more(state: PodState, now: float, message: str, about: str) -> None:
    found = verdict(state, now=now)
    assert isinstance(found, Waiting)
    assert (found.message, found.about) == (message, about)


def test_a_pod_that_the_scheduler_never_looked_at_is_not_said_to_have_a_node() -> None:
    found = verdict(pod(), now=CONFIG.start_deadline_seconds * 10)
    assert isinstance(found, Waiting)
    assert found.queued


# -- what others saw go wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
        'Container trainer exceeded its local ephemeral storage limit "2Gi". ',
    ],
)
def test_an_eviction_by_its_own_limit_is_its_own_failure(message: str) -> None:
    """tektoncd/pipeline 6145. It would happen again each time, and interruptions have a hundred attempts."""
    found = verdict(failed(137, disruption="Evicted", disruption_message=message, node="n"))
    assert isinstance(found, Broken)
    assert (found.cause, found.reason, found.node) == (Cause.CONTAINER_FAILED, "OutOfStorage", "")
    assert message.strip() in found.message
    node = verdict(failed(137, disruption="Evicted", disruption_message="The node was low on resource: memory."))
    assert isinstance(node, Broken)
    assert node.cause is Cause.PREEMPTED


def test_pods_of_before_a_suspension_do_not_end_what_was_admitted_again() -> None:
    """kubernetes-sigs/jobset 1021: Kueue preempts a Job and admits it again while its pods are still ending."""
    resumed = replace(JOB, resumed=at(60))
    old = deleting(running(), requested=50)
    waiting = verdict(old, job=resumed, now=65)
    assert isinstance(waiting, Waiting)
    assert (waiting.reason, waiting.look_again) == ("Starting", at(50 + 120 + 30))
    ended = deleting(failed(75, finished=70), requested=50)
    new = replace(running(), name="p0b", uid="b", started=at(80))
    assert verdict(ended, new, job=resumed, size=1, now=90) == Running(since=at(80))
    later = verdict(deleting(new, requested=85), job=resumed, now=86)
    assert isinstance(later, Stopping), "a pod that was deleted since then is trouble"
    lost = verdict(ended, job=replace(resumed, failed=True, failed_since=at(70)), now=90)
    assert isinstance(lost, Broken)
    assert lost.cause is Cause.PREEMPTED


def test_a_job_says_since_when_it_is_admitted_again() -> None:
    def job_with(status: str) -> ChildJob:
        condition = {"type": "Suspended", "status": status, "lastTransitionTime": "2026-01-05T12:00:30Z"}
        metadata = {"name": "j", "namespace": "ml", "uid": "u"}
        return read_job({"kind": "Job", "metadata": metadata, "spec": {}, "status": {"conditions": [condition]}})

    assert job_with("False").resumed == at(30)
    assert job_with("True").resumed is None


def test_a_node_whose_clock_is_fast_holds_nothing_up() -> None:
    """An hour ahead: neither the pod's own word nor that of the others is waited for until then."""
    ended = Ended(exit_code=1, reason="Error", finished=at(3700))
    ahead = pod(phase="Running", scheduled=at(1), started=at(3600), ended=ended)
    found = verdict(ahead, running(1), job=replace(JOB, failed=True, failed_since=at(60)), now=60 + 121)
    assert isinstance(found, Broken)
    assert found.reason == "ExitCode1"


def test_a_node_whose_clock_is_slow_has_not_begun_before_it_was_chosen() -> None:
    """Else activeDeadlineSeconds would be over before training began."""
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-05T12:00:01Z"}
    state = {"running": {"startedAt": "2026-01-05T11:00:05Z"}}
    manifest = {
        "metadata": {"name": "p0"},
        "spec": {"containers": [{"name": "trainer"}]},
        "status": {"conditions": [scheduled], "containerStatuses": [{"name": "trainer", "state": state}]},
    }
    assert read_pod(manifest).started == at(1)


def test_gates_hold_a_pod_back_and_no_node_is_to_blame() -> None:
    """Nodes that are avoided are not tried again because of them, and nobody is asked for room."""
    gated = replace(pod(unschedulable="Scheduling is blocked due to non-empty scheduling gates"), gates=("a.b/gate",))
    found = verdict(gated, now=5)
    assert isinstance(found, Waiting)
    assert (found.reason, found.queued, found.message) == ("SchedulingGated", True, "1 pod of 1 held back by a.b/gate")


@pytest.mark.parametrize(
    ("word", "reason"),
    [("SignatureValidationFailed", "ImagePullFailing"), ("PostStartHookError", "ContainerConfigInvalid")],
)
def test_all_of_kubelets_words_for_a_container_that_cannot_be_made_are_known(word: str, reason: str) -> None:
    found = verdict(pod(scheduled=at(1), waiting_reason=word), now=5)
    assert isinstance(found, Waiting)
    assert found.reason == reason
