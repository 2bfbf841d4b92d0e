"""Pods as kubelets show them, with containers around ours: what counts is what our container says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.conformance.objects import CONFIG, train_result
from tests.unit.attempts.test_judge import JOB, at, said

from finetune_operator.attempts.judge import judge, may_run
from finetune_operator.attempts.observed import Attempt
from finetune_operator.attempts.pods import Ended, PodState, read_pod
from finetune_operator.attempts.restarts import Cause
from finetune_operator.attempts.verdicts import Broken, Running, Stopping, Succeeded, Verdict, Waiting

RESULT = train_result().model_dump_json(by_alias=True, exclude_none=True)
RUNS = {"running": {"startedAt": "2026-01-05T12:00:05Z"}}


def ended(code: int, *, message: str = "", reason: str = "") -> dict[str, Any]:
    times = {"startedAt": "2026-01-05T12:00:10Z", "finishedAt": "2026-01-05T12:01:00Z"}
    word = reason or ("Completed" if code == 0 else "Error")
    return {"terminated": {"exitCode": code, "reason": word, "message": message, **times}}


def waits(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def seen(
    *,
    trainer: dict[str, Any],
    phase: str = "Running",
    sidecar: dict[str, Any] | None = None,
    init: dict[str, Any] | None = None,
    native: dict[str, Any] | None = None,
    **status: Any,
) -> PodState:
    """A pod as the apiserver returns it; `sidecar`, `init` and `native` were injected and come first. `native`: the
    status of a sidecar of Kubernetes' own kind."""
    beside = [] if sidecar is None else [{"name": "istio-proxy", "state": sidecar}]
    before = [] if init is None else [{"name": "istio-init", "state": init}]
    before += [] if native is None else [{"name": "linkerd-proxy", **native}]
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-05T12:00:01Z"}]
    return read_pod(
        {
            "metadata": {
                "name": "p0",
                "creationTimestamp": "2026-01-05T12:00:00Z",
                "annotations": {"batch.kubernetes.io/job-completion-index": "0"},
            },
            "spec": {
                "nodeName": "node1",
                "initContainers": [
                    {"name": "istio-init", "image": "istio/init:1"},
                    {"name": "linkerd-proxy", "image": "linkerd:1", "restartPolicy": "Always"},
                ],
                "containers": [{"name": "istio-proxy", "image": "istio/proxy:1"}, {"name": "trainer", "image": "t:1"}],
                "volumes": [{"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}],
            },
            "status": {
                "phase": phase,
                "conditions": conditions,
                "initContainerStatuses": before,
                "containerStatuses": [*beside, {"name": "trainer", "state": trainer}],
                **status,
            },
        }
    )


def verdict(pod: PodState, *, now: float = 80) -> Verdict:
    return judge(attempt=Attempt(job=JOB, pods=(pod,)), stage="Train", size=1, now=at(now), config=CONFIG)


@pytest.mark.parametrize(
    ("phase", "sidecar"), [("Running", RUNS), ("Failed", ended(1)), ("Failed", ended(137)), ("Succeeded", ended(0))]
)
def test_a_result_counts_whatever_a_sidecar_does(phase: str, sidecar: dict[str, Any]) -> None:
    pod = seen(trainer=ended(0, message=RESULT), sidecar=sidecar, phase=phase)
    assert verdict(pod) == Succeeded(result=train_result())
    assert not may_run(pod=pod, now=at(61), config=CONFIG)
    native = seen(trainer=ended(0, message=RESULT), native={"state": sidecar, "started": True}, phase=phase)
    assert verdict(native) == Succeeded(result=train_result())


@pytest.mark.parametrize(("phase", "sidecar"), [("Running", RUNS), ("Failed", ended(0)), ("Failed", ended(2))])
def test_a_failure_is_the_containers_own(phase: str, sidecar: dict[str, Any]) -> None:
    words = said("TooManyBadRows").model_dump_json(by_alias=True, exclude_none=True)
    found = verdict(seen(trainer=ended(65, message=words), sidecar=sidecar, phase=phase))
    assert isinstance(found, Broken)
    assert (found.cause, found.reason) == (Cause.PERMANENT, "TooManyBadRows")


def test_a_pod_with_a_sidecar_has_a_moment_to_say_who_ended_it() -> None:
    """Kubelet shows the end of the container before the pod's own reason, while sidecars still run."""
    assert verdict(seen(trainer=ended(137), sidecar=RUNS), now=65) == Stopping(
        message="1 pod still ending", look_again=at(70)
    )
    evicted = verdict(seen(trainer=ended(137), sidecar=ended(0), phase="Failed", reason="Evicted"), now=65)
    assert isinstance(evicted, Broken)
    assert evicted.cause is Cause.PREEMPTED


def test_an_init_container_that_fails_is_named_and_paid_for_as_a_failure() -> None:
    pod = seen(
        trainer=waits("PodInitializing"),
        init=ended(2, message="cannot set up iptables"),
        phase="Failed",
    )
    found = verdict(pod)
    assert isinstance(found, Broken)
    assert (found.cause, found.reason) == (Cause.CONTAINER_FAILED, "InitContainerFailed")
    assert "init container istio-init ended (exit code 2): cannot set up iptables" in found.message


def test_an_init_container_that_cannot_be_made_is_named() -> None:
    pod = seen(
        trainer=waits("PodInitializing"),
        init=waits("CreateContainerConfigError", 'secret "x" not found'),
        phase="Pending",
    )
    found = verdict(pod)
    assert isinstance(found, Waiting)
    assert (found.reason, found.message) == (
        "ContainerConfigInvalid",
        'pod p0, container istio-init cannot start: secret "x" not found',
    )


def test_the_image_of_a_sidecar_is_named_where_it_holds_the_pod_up() -> None:
    pod = seen(trainer=waits("PodInitializing"), init=waits("ImagePullBackOff"), phase="Pending")
    found = verdict(pod)
    assert isinstance(found, Waiting)
    assert "the image istio/init:1 cannot be pulled" in found.message


@pytest.mark.parametrize("sidecar", [waits("ImagePullBackOff", "no such image"), ended(1, message="no certificate")])
def test_training_goes_on_beside_a_sidecar_that_does_not(sidecar: dict[str, Any]) -> None:
    found = verdict(seen(trainer=RUNS, sidecar=sidecar), now=CONFIG.image_pull_deadline_seconds + 10)
    assert isinstance(found, Running)
    assert "container istio-proxy" in found.trouble


def test_a_sidecar_without_an_image_does_not_end_an_attempt_whose_own_image_is_long_in_coming() -> None:
    """Kubelet goes on to the other containers: only init containers hold them up."""
    pod = seen(trainer=waits("ContainerCreating"), sidecar=waits("ImagePullBackOff", "no such image"), phase="Pending")
    found = verdict(pod, now=CONFIG.image_pull_deadline_seconds + 10)
    assert isinstance(found, Waiting)
    assert (found.reason, found.message) == (
        "Starting",
        "pod p0: container istio-proxy cannot start (ImagePullBackOff): no such image",
    )


def test_a_native_sidecar_that_is_up_is_not_what_the_pod_waits_for() -> None:
    """Kubelet's Events are asked then: they tell of the image that is pulled."""
    up = {"state": RUNS, "started": True, "ready": True}
    found = verdict(seen(trainer=waits("ContainerCreating"), native=up, phase="Pending"), now=60)
    assert isinstance(found, Waiting)
    assert found.message == "pod p0: its containers are being made"
    coming = verdict(seen(trainer=waits("PodInitializing"), native=up | {"started": False}, phase="Pending"), now=60)
    assert isinstance(coming, Waiting)
    assert coming.message == "pod p0: init container linkerd-proxy is running"


@pytest.mark.parametrize(
    ("state", "restarts", "trouble"),
    [
        (RUNS, 1, ""),
        (RUNS, 3, "pod p0: sidecar linkerd-proxy ended 3 times (exit code 1): no certificate"),
        (waits("CrashLoopBackOff"), 1, "pod p0: sidecar linkerd-proxy ended (exit code 1): no certificate"),
    ],
)
def test_a_sidecar_that_came_back_is_no_trouble(state: dict[str, Any], restarts: int, trouble: str) -> None:
    before = ended(1, message="no certificate")
    sidecar = {"state": state, "lastState": before, "restartCount": restarts, "started": True, "ready": True}
    found = verdict(seen(trainer=RUNS, native=sidecar), now=60)
    assert isinstance(found, Running)
    assert found.trouble == trouble


def test_a_sidecar_that_fails_in_a_gang_is_no_interruption() -> None:
    """Kubernetes takes a pod for failed in which any container was, and ends the gang: it would do so each time."""
    done = seen(trainer=ended(0, message=RESULT), sidecar=ended(1, message="no certificate"), phase="Failed")
    stopped = replace(done, name="p1", index=1, phase="Failed", trouble="", ended=Ended(exit_code=75, finished=at(60)))
    job = replace(JOB, failed=True, failed_since=at(58))
    attempt = Attempt(job=job, pods=(done, stopped))
    found = judge(attempt=attempt, stage="Train", size=2, now=at(80), config=CONFIG)
    assert isinstance(found, Broken)
    assert (found.cause, found.reason) == (Cause.CONTAINER_FAILED, "SidecarFailed")
    assert "pod p0 had done its part, but its container istio-proxy ended (exit code 1): no certif" in found.message
    evicted = Attempt(job=job, pods=(done, replace(stopped, disruption="EvictionByEvictionAPI")))
    found = judge(attempt=evicted, stage="Train", size=2, now=at(80), config=CONFIG)
    assert isinstance(found, Broken)
    assert found.cause is Cause.PREEMPTED


def test_a_pod_without_containers_is_new() -> None:
    pod = read_pod({"metadata": {"name": "p0"}, "spec": {"containers": []}})
    assert (pod.started, pod.ended, pod.finished, pod.trouble) == (None, None, False, "")


@pytest.mark.parametrize(
    ("ready", "changed", "alive"),
    [
        (True, "2026-01-05T12:00:30Z", True),
        (False, "2026-01-05T12:20:00Z", False),
        (False, "2026-01-05T12:00:01Z", None),
    ],
)
def test_a_probe_tells_whether_a_container_is_at_work(ready: bool, changed: str, alive: bool | None) -> None:
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": changed}
    statuses = [{"name": "trainer", "state": RUNS, "ready": ready}]
    manifest: dict[str, Any] = {
        "metadata": {"name": "p0"},
        "spec": {"containers": [{"name": "trainer", "readinessProbe": {}}]},
        "status": {"phase": "Running", "conditions": [condition], "containerStatuses": statuses},
    }
    assert read_pod(manifest).alive is alive
    manifest["spec"]["containers"] = [{"name": "trainer"}]
    assert read_pod(manifest).alive is None
