"""A whole rollout on real nodes under the requests of a real client, with everything going wrong on the way."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests.cluster import endpoints
from tests.cluster.endpoints import EndpointSpace, Traffic
from tests.cluster.operator_install import SYSTEM, InstalledOperator
from tests.harness import wait_until

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def space(operator: InstalledOperator, namespace: str) -> EndpointSpace:
    return endpoints.prepare(cluster=operator.cluster, namespace=namespace)


def in_production(status: dict[str, Any]) -> bool:
    """A version serves, and gateways lead to it."""
    available = any(each["type"] == "Available" and each["status"] == "True" for each in status.get("conditions") or ())
    return status.get("phase") == "Idle" and available


def kill_leader(operator: InstalledOperator) -> None:
    """The operator's leader is gone without a word."""
    pod = operator.leader().split("_")[0]
    operator.kubectl.run("delete", "pod", pod, "-n", SYSTEM, "--grace-period=0", "--force", "--wait=false")


def test_from_the_first_version_to_a_rollback(operator: InstalledOperator, space: EndpointSpace) -> None:
    space.kubectl.apply(endpoints.manifest(), namespace=space.namespace)
    space.offer("v1", baseline="")
    first = space.wait(in_production, what="the first version in production")
    digest = first["status"]["stable"]["digest"]
    address = space.cluster.service_address(endpoints.ENDPOINT, namespace=space.namespace)
    with Traffic(url=f"http://{address}").flowing() as traffic:
        traffic.wait(more=10)
        v2 = space.offer("v2", baseline=digest)
        phases = roll(operator, space, traffic, version=v2)
        assert phases == ["Shadowing", "Canary", "AwaitingApproval"]
        space.annotate(approve=v2)
        space.wait(lambda status: status.get("phase") == "Guarding", what="Guarding")
        assert space.status()["stable"]["name"] == "v2"
        traffic.wait(more=20)
        before, retries = list(traffic.failures), traffic.retries
        restarts = {pod["metadata"]["name"]: restarted(pod) for pod in space.pods("server", version="v1")}

        thaw = space.freeze("v2")  # every answer hangs from now on
        began = time.monotonic()
        try:
            space.wait(lambda status: status["stable"]["name"] == "v1", what="back on v1", timeout_s=60)
            took = time.monotonic() - began
            space.wait(lambda status: status.get("phase") == "Idle", what="Idle", timeout_s=120)
        finally:
            thaw()
        traffic.wait(more=20)
        status = space.status()
    print(f"rollback {took:.1f} s after the servers froze; {traffic.answered} answers")
    assert (status["versions"][-1]["name"], status["versions"][-1]["outcome"]) == ("v2", "RolledBack")
    assert not before, f"failed on the way to the promotion: {before[:5]}"
    assert not traffic.failures, f"clients must not notice: {traffic.failures[:5]}"
    assert traffic.retries == retries, "nor ask twice because of a switch"
    assert took < 60
    assert {pod["metadata"]["name"]: restarted(pod) for pod in space.pods("server", version="v1")} == restarts
    wait_until(lambda: not space.pods("server", version="v2"), what="the servers of v2 gone", timeout_s=120)


def roll(operator: InstalledOperator, space: EndpointSpace, traffic: Traffic, *, version: str) -> list[str]:
    """Go with a candidate to its approval, with a fault in each phase; the phases that were seen."""
    phases: list[str] = []
    deadline = time.monotonic() + 600
    while not phases or phases[-1] != "AwaitingApproval":
        assert time.monotonic() < deadline, json.dumps(space.status(), indent=1)
        status = space.status()
        assert status["stable"]["name"] == "v1"
        phase = status["phase"]
        if status.get("candidate", {}).get("uid") == version and phase not in phases:
            phases.append(phase)
            if phase == "Shadowing":
                kill_leader(operator)
            elif phase == "Canary":
                gateway = space.pods("gateway")[0]["metadata"]["name"]
                space.kubectl.delete("pod", gateway, namespace=space.namespace, wait=False)
                space.cluster.stop_apiserver()
                traffic.wait(more=10)
                space.cluster.start_apiserver()
        time.sleep(0.5)
    return phases


def restarted(pod: dict[str, object]) -> int:
    """How often a pod's container was started again."""
    status = pod["status"]
    assert isinstance(status, dict)
    return int(status["containerStatuses"][0]["restartCount"])


def test_a_version_that_cannot_be_served_never_touches_production(
    operator: InstalledOperator, space: EndpointSpace
) -> None:
    space.kubectl.apply(endpoints.manifest(), namespace=space.namespace)
    space.offer("v1", baseline="")
    first = space.wait(in_production, what="the first version in production")
    space.offer("v2", baseline=first["status"]["stable"]["digest"])
    damaged = space.folder / "versions" / "v2" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    status = space.wait(
        lambda status: status.get("phase") == "Idle" and status["versions"][-1]["name"] == "v2", what="v2 rejected"
    )["status"]
    assert status["versions"][-1]["outcome"] == "Rejected"
    assert "Artifact" in status["versions"][-1]["reason"], status["versions"][-1]
    assert status["stable"]["name"] == "v1"
