"""An endpoint on a real apiserver among others: objects that have its names, people who change its children, and an
autoscaler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.api.people import endpoint
from tests.api.replica import Replica, replicas
from tests.harness import ApiServer, Object, wait_until
from tests.wrong_manifests import valid

TIMEOUT_S = 120
RESOURCES = {"requests": {"cpu": 2, "memory": "1024Mi"}, "limits": {"cpu": "2000m", "memory": "2048Mi"}}


@pytest.fixture(scope="module")
def operator(crds: ApiServer, controllers: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    controllers.kubectl.apply(Path("manifests/rbac"))
    environment = {"FINETUNE_GATEWAY_IMAGE": "localhost/finetune-gateway:test"}
    with replicas(controllers, tmp_path_factory.mktemp("operator"), "one", environment=environment) as (replica,):
        yield replica
        assert replica.metric('finetune_reconcile_errors_total{reason="Internal"}') == 0
        assert not replica.said("is forbidden: User"), "it lacks a right"


def create(apiserver: ApiServer, namespace: str) -> None:
    manifest = endpoint(namespace=namespace)
    manifest["spec"]["serving"] = {**manifest["spec"]["serving"], "resources": RESOURCES}
    manifest["spec"]["gateway"] = {"resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}}}
    version = valid("version")
    version["metadata"] = {"name": "v1", "namespace": namespace, "labels": {"finetune.dev/endpoint": "router"}}
    version["spec"] |= {"endpointRef": {"name": "router"}, "task": manifest["spec"]["task"]}
    version["spec"]["evaluation"] = {**version["spec"]["evaluation"], "verdict": "Pass"}
    apiserver.kubectl.create([manifest, version])


def condition(apiserver: ApiServer, namespace: str, type: str, words: str) -> Object:
    """Wait for a condition that is true and says this."""

    def holds(found: Object) -> bool:
        conditions = found.get("status", {}).get("conditions", ())
        return any(
            each["type"] == type and each["status"] == "True" and words in each["message"] for each in conditions
        )

    return apiserver.kubectl.wait_for(
        "modelendpoint", "router", holds, namespace=namespace, timeout_s=TIMEOUT_S, what=f"{type}: {words}"
    )


def server_of(apiserver: ApiServer, namespace: str) -> str:
    """The name of the version's Deployment, once it is there."""
    names: list[str] = []

    def probe() -> bool:
        found = apiserver.kubectl.list("deployments", namespace=namespace, selector="finetune.dev/component=server")
        names[:] = [each["metadata"]["name"] for each in found]
        return bool(names)

    wait_until(probe, what="the servers", timeout_s=TIMEOUT_S)
    return names[0]


def requests(operator: Replica, method: str, resource: str = r"\w+") -> float:
    pattern = rf'finetune_kubernetes_requests_total{{method="{method}",resource="{resource}",status="\d+"}} ([\d.]+)'
    return sum(float(count) for count in re.findall(pattern, operator.get("/metrics")[1]))


def look_twice(operator: Replica) -> None:
    """Wait until the endpoint, whose servers never become ready here, has been looked at two more times."""
    before = requests(operator, "GET", "controllerrevisions")
    wait_until(
        lambda: requests(operator, "GET", "controllerrevisions") >= before + 2, what="two looks", timeout_s=TIMEOUT_S
    )


def test_a_role_of_somebody_else_is_named_and_left_alone(
    operator: Replica, controllers: ApiServer, namespace: str
) -> None:
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    api = "rbac.authorization.k8s.io/v1"
    role = {"apiVersion": api, "kind": "Role", "metadata": {"name": "router-gateway"}, "rules": rules}
    controllers.kubectl.create(role, namespace=namespace)
    theirs = controllers.kubectl.get("role", "router-gateway", namespace=namespace)
    create(controllers, namespace)
    condition(controllers, namespace, "Stalled", "Role router-gateway was made by kubectl-create")
    look_twice(operator)
    assert controllers.kubectl.get("role", "router-gateway", namespace=namespace) == theirs
    assert controllers.kubectl.find("deployment", "router-gateway", namespace=namespace) is None
    controllers.kubectl.delete("role", "router-gateway", namespace=namespace)
    controllers.kubectl.wait_for(
        "deployment", "router-gateway", lambda found: True, namespace=namespace, timeout_s=TIMEOUT_S
    )
    controllers.kubectl.run("annotate", "modelendpoint", "router", "-n", namespace, "finetune.dev/allow-delete=true")
    controllers.kubectl.delete("modelendpoint", "router", namespace=namespace)


def test_what_the_apiserver_writes_differently_rests_and_what_people_change_is_put_back_with_pauses(
    operator: Replica, controllers: ApiServer, namespace: str
) -> None:
    create(controllers, namespace)
    name = server_of(controllers, namespace)
    look_twice(operator)
    before = requests(operator, "PATCH")
    look_twice(operator)
    assert requests(operator, "PATCH") == before, "2000m is 2, and nothing is written"

    def run_file() -> str:
        (container,) = controllers.kubectl.get("deployment", name, namespace=namespace)["spec"]["template"]["spec"][
            "containers"
        ]
        return str(next(each["value"] for each in container["env"] if each["name"] == variable))

    template = controllers.kubectl.get("deployment", name, namespace=namespace)["spec"]["template"]["spec"]
    variable, value = template["containers"][0]["env"][0]["name"], template["containers"][0]["env"][0]["value"]
    controllers.kubectl.run("set", "env", f"deployment/{name}", "-n", namespace, f"{variable}=/other", "ADDED=1")
    condition(controllers, namespace, "Contested", "kubectl-set changed")
    wait_until(lambda: run_file() == value, what="the first put back", timeout_s=TIMEOUT_S)
    controllers.kubectl.run("set", "env", f"deployment/{name}", "-n", namespace, f"{variable}=/again")
    look_twice(operator)
    patches = requests(operator, "PATCH")
    assert patches - before <= 4, "one put back, and the creation that counts as applied"
    wait_until(lambda: run_file() == value, what="the second put back, after a pause", timeout_s=TIMEOUT_S)
    events = controllers.kubectl.list("events", namespace=namespace)
    assert any(each["reason"] == "Contested" and "kubectl-set" in each["message"] for each in events)


def test_an_autoscaler_of_the_endpoint_sets_how_many_servers_there_are(
    operator: Replica, controllers: ApiServer, namespace: str
) -> None:
    create(controllers, namespace)
    name = server_of(controllers, namespace)
    scaler = yaml.safe_load(Path("manifests/samples/autoscaling/modelendpoint-hpa.yaml").read_text())
    scaler["spec"] |= {"minReplicas": 3, "scaleTargetRef": {**scaler["spec"]["scaleTargetRef"], "name": "router"}}
    controllers.kubectl.create(scaler, namespace=namespace)
    controllers.kubectl.wait_for(
        "deployment",
        name,
        lambda found: found["spec"]["replicas"] == 3 and found["status"].get("replicas") == 3,
        namespace=namespace,
        timeout_s=TIMEOUT_S,
        what="the three servers that the autoscaler wants at least",
    )
    stored = controllers.kubectl.get("modelendpoint", "router", namespace=namespace)
    assert stored["spec"]["serving"]["replicas"] == 3
    assert not [each for each in stored["status"]["conditions"] if each["type"] == "Contested"]
