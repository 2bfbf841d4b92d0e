"""What a version's pods say about why it is not ready: its server, and the containers around it."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.endpoint.observe import _is_living_gateway
from finetune_operator.endpoint.observed import Server
from finetune_operator.endpoint.serving.servers import server_of

ENDED = {"terminated": {"exitCode": 66, "reason": "Error", "message": '{"reason": "InputNotFound", "message": "gone"}'}}


def server(
    *, container: dict[str, Any], init: dict[str, Any] | None = None, sidecar: dict[str, Any] | None = None
) -> Server:
    statuses = [{"name": "istio-proxy", **sidecar}] if sidecar else []
    pod = {
        "metadata": {"name": "router-v1-x"},
        "spec": {"containers": [{"name": "server"}]},
        "status": {
            "initContainerStatuses": [{"name": "fetch", **init}] if init else [],
            "containerStatuses": [*statuses, {"name": "server", **container}],
        },
    }
    deployment = {"metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": {"observedGeneration": 1}}
    return server_of(version_uid="v", deployment=deployment, pods=[pod], refs=())


WAITS = {"state": {"waiting": {"reason": "PodInitializing"}}}


def test_what_fetches_the_model_for_a_server_can_fail_for_good() -> None:
    found = server(container=WAITS, init={"state": ENDED})
    assert found.failure == "InputNotFound: gone"


def test_a_crash_loop_of_what_fetches_is_named() -> None:
    crash = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 5}
    init = {**crash, "lastState": {"terminated": {"exitCode": 70, "reason": "Error"}}}
    assert (
        server(container=WAITS, init=init).failure == "its init container fetch ended 5 times: Error (exit status 70)"
    )


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [
        (
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}},
            "container istio-proxy cannot start (ErrIm",
        ),
        ({"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}, "container istio-proxy cannot"),
    ],
)
def test_what_a_sidecar_does_wrong_is_shown_and_no_failure_of_the_version(sidecar: dict[str, Any], words: str) -> None:
    found = server(container={"state": {"running": {"startedAt": "2026-01-05T12:00:05Z"}}}, sidecar=sidecar)
    assert found.failure is None
    assert (found.trouble or "").startswith(words)


@pytest.mark.parametrize(("state", "lives"), [({"running": {}}, True), ({"waiting": {}}, False), (ENDED, False)])
def test_a_gateway_lives_while_its_own_container_does(state: dict[str, Any], lives: bool) -> None:
    statuses = [{"name": "istio-proxy", "state": {"running": {}}}, {"name": "gateway", "state": state}]
    labels = {"finetune.dev/component": "gateway"}
    pod = {"metadata": {"labels": labels}, "status": {"phase": "Running", "containerStatuses": statuses}}
    assert _is_living_gateway(pod) is lives


def test_a_meshs_init_container_is_not_the_versions_fault() -> None:
    crash = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 9}
    init = {**crash, "name": "istio-proxy", "lastState": {"terminated": {"exitCode": 66, "reason": "Error"}}}
    found = server(container=WAITS, init=init)
    assert found.failure is None
    assert (found.trouble or "").startswith("init container istio-proxy ended 9 times (exit code 66)")


def test_a_node_that_refuses_the_servers_is_named() -> None:
    refused = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
    deployment = {"metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": {"observedGeneration": 1}}
    pod = {"metadata": {"name": "router-v1-x"}, "spec": {"containers": []}, "status": refused}
    found = server_of(version_uid="v", deployment=deployment, pods=[pod], refs=())
    assert found.trouble == "UnexpectedAdmissionError: no healthy devices present"
