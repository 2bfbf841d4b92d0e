"""Replicas of the operator as processes: who leads, what happens when it ends, and while the apiserver is away."""

from __future__ import annotations

import signal
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.api.replica import LEASE_SECONDS, NAMESPACE, Replica, replicas, seconds_until, write_kubeconfig
from tests.harness import ApiServer
from tests.patience import HANGS_S
from tests.staying import stays_so


@pytest.fixture(scope="module")
def installed(apiserver: ApiServer) -> Iterator[ApiServer]:
    """The committed types and rights; the processes are ours."""
    apiserver.kubectl.apply(Path("manifests/crd"))
    apiserver.kubectl.apply(Path("manifests/rbac"))
    yield apiserver


def holder(apiserver: ApiServer) -> str:
    return str(apiserver.kubectl.get("lease", "finetune-operator", namespace=NAMESPACE)["spec"]["holderIdentity"])


def test_one_leads_and_both_are_ready(installed: ApiServer, tmp_path: Path) -> None:
    with replicas(installed, tmp_path, "one", "two") as (leader, standby):
        assert leader.leads
        assert not standby.leads
        assert holder(installed).startswith("one_")
        for replica in (leader, standby):
            assert replica.get("/healthz") == (200, "ok\n")
            assert replica.get("/readyz") == (200, "ok\n")
        assert not standby.said("the door is open")
        renewals = 'finetune_kubernetes_requests_total{method="PUT",resource="leases",status="200"}'
        seconds_until(lambda: leader.metric(renewals) > 0, what="the lease's first renewal")


def test_the_door_is_where_the_leader_is(installed: ApiServer, tmp_path: Path) -> None:
    with replicas(installed, tmp_path, "one") as (leader,):
        endpoints = installed.kubectl.get("endpointslice", "finetune-door", namespace=NAMESPACE)["endpoints"]
        assert endpoints[0]["addresses"] == ["10.244.9.1"]
        bundle = installed.kubectl.get("configmap", "finetune-door-ca", namespace=NAMESPACE)["data"]["ca.crt"]
        context = ssl.create_default_context(cadata=bundle)
        certificate = _certificate_of(port=leader.door_port, context=context, name=f"finetune-door.{NAMESPACE}.svc")
        assert ("DNS", f"finetune-door.{NAMESPACE}.svc") in certificate


def _certificate_of(*, port: int, context: ssl.SSLContext, name: str) -> list[tuple[str, str]]:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=HANGS_S) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        certificate = secure.getpeercert() or {}
    return list(certificate["subjectAltName"])  # type: ignore[arg-type]


def test_sigterm_hands_over_at_once(installed: ApiServer, tmp_path: Path) -> None:
    with replicas(installed, tmp_path, "one", "two", lease_seconds=120) as (leader, standby):
        leader.signal(signal.SIGTERM)
        took = seconds_until(lambda: standby.leads, what="the standby's leadership")
        assert leader.wait_for_end() == 0
        assert took < 80, "it waited for the lease to end"
        standby.wait_until_says("the door is open")
        endpoints = installed.kubectl.get("endpointslice", "finetune-door", namespace=NAMESPACE)["endpoints"]
        assert endpoints[0]["addresses"] == ["10.244.9.2"]
        standby.signal(signal.SIGTERM)
        assert standby.wait_for_end() == 0
        assert holder(installed) == ""


def test_kill_9_hands_over_when_the_lease_ends(installed: ApiServer, tmp_path: Path) -> None:
    with replicas(installed, tmp_path, "one", "two") as (leader, standby):
        leader.signal(signal.SIGKILL)
        took = seconds_until(lambda: standby.leads, what="the standby's leadership")
        assert took > LEASE_SECONDS / 2
        assert holder(installed).startswith("two_")


def test_a_frozen_leader_does_nothing_when_it_wakes_up(installed: ApiServer, tmp_path: Path) -> None:
    with replicas(installed, tmp_path, "one", "two") as (leader, standby):
        leader.signal(signal.SIGSTOP)
        seconds_until(lambda: standby.leads, what="the standby's leadership")
        leader.signal(signal.SIGCONT)
        seconds_until(lambda: not leader.leads, what="the end of the old leadership")
        assert standby.leads
        assert leader.process.poll() is None


@pytest.mark.parametrize("kind", ["away", "hanging"])
def test_an_outage_of_the_apiserver_causes_no_restart(installed: ApiServer, tmp_path: Path, kind: str) -> None:
    with replicas(installed, tmp_path, "one", "two") as both:
        (installed.stop_apiserver if kind == "away" else installed.pause_apiserver)()
        try:
            seconds_until(
                lambda: not any(replica.leads for replica in both),
                what="the end of the leadership",
            )
            stays_so(lambda: all(replica.process.poll() is None for replica in both), seconds=LEASE_SECONDS)
            assert [replica.get("/healthz") for replica in both] == [(200, "ok\n")] * 2
        finally:
            (installed.start_apiserver if kind == "away" else installed.resume_apiserver)()
        seconds_until(lambda: sum(replica.leads for replica in both) == 1, what="a new leader")
        leader = next(replica for replica in both if replica.leads)
        seconds_until(
            lambda: sum("the door is open" in entry["message"] for entry in leader.log()) >= 1,
            what="the new leader's door",
        )
        assert all(replica.process.poll() is None for replica in both)


def test_it_starts_before_the_apiserver_does(installed: ApiServer, tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(installed, tmp_path)
    environment = {"FINETUNE_TRAINER_IMAGE": "localhost/x", "POD_NAMESPACE": NAMESPACE, "POD_NAME": "early"}
    installed.stop_apiserver()
    replica = Replica(name="early", kubeconfig=kubeconfig, folder=tmp_path, environment=environment)
    try:
        replica.wait_until_says("the apiserver does not answer yet")
        assert replica.get("/healthz") == (200, "ok\n")
        assert replica.get("/readyz") == (503, "the apiserver has not answered yet\n")
    finally:
        installed.start_apiserver()
        try:
            replica.wait_until_says("the door is open")
            assert replica.get("/readyz") == (200, "ok\n")
        finally:
            replica.kill()
            installed.kubectl.delete("lease", "finetune-operator", namespace=NAMESPACE)


def test_metrics_are_for_whom_the_cluster_lets_read_them(installed: ApiServer, tmp_path: Path) -> None:
    kubectl, reader = installed.kubectl, f"--serviceaccount={NAMESPACE}:reader"
    for name in ("reader", "stranger"):
        kubectl.run("create", "serviceaccount", name, f"--namespace={NAMESPACE}")
    kubectl.run("create", "clusterrole", "reads-metrics", "--verb=get", "--non-resource-url=/metrics")
    kubectl.run("create", "clusterrolebinding", "reads-metrics", "--clusterrole=reads-metrics", reader)
    with replicas(installed, tmp_path, "one", environment={"FINETUNE_METRICS": "Authenticated"}) as (replica,):
        assert replica.get("/healthz") == (200, "ok\n")
        assert replica.get("/metrics")[0] == 404, "not at the open port"
        tokens = {name: kubectl.service_account_token(name, namespace=NAMESPACE) for name in ("reader", "stranger")}
        status, text = secured(replica, token=tokens["reader"])
        assert (status, "finetune_leader 1" in text) == (200, True)
        status, text = secured(replica, token=tokens["stranger"])
        assert (status, f"{NAMESPACE}:stranger may not read metrics" in text) == (403, True)
        assert secured(replica, token="made-up")[0] == 401
        assert secured(replica, token="")[0] == 401


def secured(replica: Replica, *, token: str) -> tuple[int, str]:
    """Status and body, as who scrapes without verifying the certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(f"https://127.0.0.1:{replica.metrics_port}/metrics")
    request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=HANGS_S, context=context) as answer:  # noqa: S310 - loopback
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_wrong_settings_are_said_and_end_it(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("{}")
    replica = Replica(
        name="wrong", kubeconfig=tmp_path / "kubeconfig", folder=tmp_path, environment={"FINETUNE_TRAINER_IMAGE": ""}
    )
    assert replica.wait_for_end() == 2
    assert "FINETUNE_TRAINER_IMAGE is not set" in (tmp_path / "wrong.log").read_text()
