"""What a team does: `kubectl apply` of an endpoint and of jobs, in the demo's own files, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from demo import assets
from tests.cluster.jobs import give_to_pods
from tests.cluster.operator_install import InstalledOperator, install, release, uninstall_release
from tests.cluster.traffic import wait_reachable
from tests.harness import Cluster, Kubectl, Object
from tests.harness.errors import HarnessError
from tests.harness.store import ROOT
from tests.patience import HANGS_S, JOB_HANGS_S

pytestmark = pytest.mark.timeout(1700)
DEMO = ROOT / "demo"
ENDPOINT = "topics"


@pytest.fixture
def claim(cluster: Cluster, namespace: str) -> Path:
    folder = cluster.volume("models", namespace=namespace)
    assets.fill_topics(folder)
    give_to_pods(folder)
    return folder


def manifest(name: str) -> dict[str, Any]:
    """One of the demo's files."""
    loaded: dict[str, Any] = yaml.safe_load((DEMO / f"{name}.yaml").read_text())
    return loaded


def wait(kubectl: Kubectl, job: str, condition: str, *, namespace: str) -> Object:
    """`kubectl wait`, as a pipeline would; the job after that."""
    where = ("-n", namespace, f"--timeout={JOB_HANGS_S}s")
    try:
        kubectl.run("wait", f"--for=condition={condition}", f"finetunejob/{job}", *where, timeout_s=JOB_HANGS_S)
    except HarnessError as error:
        objects = kubectl.run("get", "ftj,mep,pods", "-n", namespace, "-o", "wide")
        raise AssertionError(f"{error}\n{objects}") from None
    return kubectl.get("finetunejob", job, namespace=namespace)


def endpoint(kubectl: Kubectl, *, namespace: str) -> dict[str, Any]:
    """The endpoint's status."""
    return dict(kubectl.get("modelendpoint", ENDPOINT, namespace=namespace)["status"])


def comparisons_passed(operator: InstalledOperator) -> float:
    """What the operator that leads has counted since it leads."""
    (address,) = [pod["status"]["podIP"] for pod in operator.pods_of(operator.leader())]
    shown = urllib3.request("GET", f"http://{address}:8080/metrics", timeout=HANGS_S).data.decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in shown if line.startswith('finetune_comparisons_total{verdict="Pass"}')
    )


@pytest.fixture
def released(operator: InstalledOperator) -> Iterator[InstalledOperator]:
    """By Helm, upgraded from an earlier chart; whoever comes after finds the manifests again."""
    release(operator=operator)
    yield operator
    install(cluster=operator.cluster)


def test_jobs_end_promoted_or_rejected_by_themselves(released: InstalledOperator, claim: Path, namespace: str) -> None:
    """No client asks during the rollouts: the probes decide. What is served outlives the operator."""
    operator, kubectl = released, released.kubectl
    kubectl.apply(manifest("topics"), namespace=namespace)
    kubectl.apply(manifest("job-topics-1"), namespace=namespace)
    wait(kubectl, "topics-1", "Promoted", namespace=namespace)
    assert endpoint(kubectl, namespace=namespace)["stable"]["name"] == "topics-1"
    url = f"http://{operator.cluster.service_address(ENDPOINT, namespace=namespace)}"
    wait_reachable(url)
    answer = urllib3.request(
        "POST", f"{url}/v1/classify", json={"input": "What is artificial intelligence?"}, timeout=HANGS_S
    )
    assert answer.status == 200
    assert answer.json()["label"] in assets.TOPICS

    kubectl.apply(manifest("job-topics-2"), namespace=namespace)
    rejected = wait(kubectl, "topics-2", "Stalled", namespace=namespace)
    assert rejected["status"]["phase"] == "Rejected"
    version = kubectl.get("modelversion", "topics-2", namespace=namespace)["spec"]
    assert (version["evaluation"]["verdict"], version["baseline"]["name"]) == ("Fail", "topics-1")
    assert endpoint(kubectl, namespace=namespace)["phase"] == "Idle"

    before = comparisons_passed(operator)
    third = manifest("job-topics-3")
    third["spec"]["evaluation"]["baseline"] = "Base"  # proves nothing about what it would replace
    kubectl.apply(third, namespace=namespace)
    wait(kubectl, "topics-3", "Promoted", namespace=namespace)
    status = endpoint(kubectl, namespace=namespace)
    (compared,) = status["comparisons"]
    assert (compared["version"]["name"], compared["baseline"]["name"]) == ("topics-3", "topics-1")
    assert (compared["verdict"], compared["accepted"]) == ("Pass", True)
    assert (status["stable"]["name"], status["previous"]["name"]) == ("topics-3", "topics-1")
    assert (claim / compared["report"].removeprefix("pvc://models/")).is_file()
    assert comparisons_passed(operator) == before + 1
    tried = [each["name"] for each in status["versions"]]
    assert tried == ["topics-1", "topics-3"], "the one from corrupted labels never came here"

    uninstall_release(operator=operator)
    assert endpoint(kubectl, namespace=namespace)["stable"]["name"] == "topics-3", "types and objects are kept"
    answer = urllib3.request("POST", f"{url}/v1/classify", json={"input": "What is a planet?"}, timeout=HANGS_S)
    assert answer.status == 200
