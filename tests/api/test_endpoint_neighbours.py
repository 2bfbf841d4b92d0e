"""An endpoint on a real apiserver among others: objects that have its names, people who change its children, and an
autoscaler."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.api.people import endpoint
from tests.api.replica import Replica, replicas
from tests.conformance.objects import evaluate_result
from tests.harness import ApiServer, KubectlError, Object, wait_until
from tests.patience import HANGS_S
from tests.simulation.endpoint_world import version_manifest

RESOURCES = {"requests": {"cpu": 2, "memory": "1024Mi"}, "limits": {"cpu": "2000m", "memory": "2048Mi"}}


@pytest.fixture(scope="module")
def operator(crds: ApiServer, controllers: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    controllers.kubectl.apply(Path("manifests/rbac"))
    environment = {"FINETUNE_GATEWAY_IMAGE": "localhost/finetune-gateway:test"}
    with replicas(controllers, tmp_path_factory.mktemp("operator"), "one", environment=environment) as (replica,):
        yield replica
        assert replica.metric('finetune_reconcile_errors_total{reason="Internal"}') == 0
        assert not replica.said("is forbidden: User"), "it lacks a right"


def create(apiserver: ApiServer, namespace: str, *, replicas: int = 1) -> None:
    manifest = endpoint(namespace=namespace)
    manifest["spec"]["serving"]["replicas"] = replicas
    manifest["spec"]["serving"] = {**manifest["spec"]["serving"], "resources": RESOURCES}
    manifest["spec"]["gateway"] = {"resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}}}
    apiserver.kubectl.create([manifest, version_manifest("v1") | {"metadata": metadata_of("v1", namespace)}])


def metadata_of(version: str, namespace: str) -> Object:
    return {"name": version, "namespace": namespace, "labels": {"finetune.dev/endpoint": "router"}}


def pods(apiserver: ApiServer, namespace: str, component: str) -> list[Object]:
    found = apiserver.kubectl.list("pods", namespace=namespace, selector=f"finetune.dev/component={component}")
    return [each for each in found if "deletionTimestamp" not in each["metadata"]]


def play(
    apiserver: ApiServer, namespace: str, pod: str, *, container: str, state: Object, phase: str = "Running"
) -> None:
    """In place of kubelet: a pod runs and is ready, or has ended."""
    ready = "running" in state
    status = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": str(ready)}, {"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [
            {"name": container, "image": "x", "imageID": "x", "ready": ready, "restartCount": 0, "state": state}
        ],
    }
    apiserver.kubectl.patch("pod", pod, {"status": status}, namespace=namespace, subresource="status")


def forge(apiserver: ApiServer, namespace: str, real: Object, *, state: Object, phase: str, container: str) -> None:
    """Somebody's pod with all labels of a real one but what would have its controller take it up."""
    labels = {key: value for key, value in real["metadata"]["labels"].items() if key.startswith("finetune.dev/")}
    owner = real["metadata"]["ownerReferences"][0] | {"controller": False}
    name = f"forged-{container}"
    metadata = {"name": name, "labels": labels, "ownerReferences": [owner]}
    spec = {"containers": [{"name": container, "image": "localhost/none"}]}
    apiserver.kubectl.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, namespace=namespace
    )
    play(apiserver, namespace, name, container=container, state=state, phase=phase)


def condition(apiserver: ApiServer, namespace: str, type: str, words: str) -> Object:
    """Wait for a condition that is true and says this."""

    def holds(found: Object) -> bool:
        conditions = found.get("status", {}).get("conditions", ())
        return any(
            each["type"] == type and each["status"] == "True" and words in each["message"] for each in conditions
        )

    return apiserver.kubectl.wait_for(
        "modelendpoint", "router", holds, namespace=namespace, timeout_s=HANGS_S, what=f"{type}: {words}"
    )


def server_of(apiserver: ApiServer, namespace: str) -> str:
    """The name of the version's Deployment, once it is there."""
    names: list[str] = []

    def probe() -> bool:
        found = apiserver.kubectl.list("deployments", namespace=namespace, selector="finetune.dev/component=server")
        names[:] = [each["metadata"]["name"] for each in found]
        return bool(names)

    wait_until(probe, what="the servers")
    return names[0]


def requests(operator: Replica, method: str, resource: str = r"\w+") -> float:
    pattern = rf'finetune_kubernetes_requests_total{{method="{method}",resource="{resource}",status="\d+"}} ([\d.]+)'
    return sum(float(count) for count in re.findall(pattern, operator.get("/metrics")[1]))


def look_again(operator: Replica, apiserver: ApiServer, namespace: str) -> None:
    """Have the endpoint looked at, at least once from now on. Looks at one object never overlap."""
    looks = 'finetune_reconcile_duration_seconds_count{kind="ModelEndpoint"}'
    for number in range(2):  # the first look that ends may have begun before
        before = operator.metric(looks)
        word = f"look={before}-{number}"
        apiserver.kubectl.run("annotate", "--overwrite", "modelendpoint", "router", "-n", namespace, word)
        wait_until(lambda before=before: operator.metric(looks) > before, what="a look")  # type: ignore[misc]


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
    look_again(operator, controllers, namespace)
    assert controllers.kubectl.get("role", "router-gateway", namespace=namespace) == theirs
    assert controllers.kubectl.find("deployment", "router-gateway", namespace=namespace) is None
    controllers.kubectl.delete("role", "router-gateway", namespace=namespace)
    controllers.kubectl.wait_for(
        "deployment", "router-gateway", lambda found: True, namespace=namespace, timeout_s=HANGS_S
    )
    controllers.kubectl.run("annotate", "modelendpoint", "router", "-n", namespace, "finetune.dev/allow-delete=true")
    # Its children go first: the operator must not make them again while it waits for that.
    controllers.kubectl.run(
        "delete", "modelendpoint", "router", "-n", namespace, "--cascade=foreground", timeout_s=HANGS_S
    )
    assert not controllers.kubectl.list("deployments", namespace=namespace)


def test_what_the_apiserver_writes_differently_rests_and_what_people_change_is_put_back_with_pauses(
    operator: Replica, controllers: ApiServer, namespace: str
) -> None:
    create(controllers, namespace)
    name = server_of(controllers, namespace)
    look_again(operator, controllers, namespace)
    before = requests(operator, "PATCH")
    look_again(operator, controllers, namespace)
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
    wait_until(lambda: run_file() == value, what="the first put back")
    controllers.kubectl.run("set", "env", f"deployment/{name}", "-n", namespace, f"{variable}=/again")
    look_again(operator, controllers, namespace)
    patches = requests(operator, "PATCH")
    assert patches - before <= 4, "one put back, and the creation that counts as applied"
    wait_until(lambda: run_file() == value, what="the second put back, after a pause")
    events = controllers.kubectl.list("events", namespace=namespace)
    assert any(each["reason"] == "Contested" and "kubectl-set" in each["message"] for each in events)
    controllers.kubectl.run("scale", "deployment/router-gateway", "-n", namespace, "--replicas=7")
    condition(controllers, namespace, "Contested", "Deployment router-gateway: kubectl changed spec.replicas")
    controllers.kubectl.wait_for(
        "deployment",
        "router-gateway",
        lambda found: found["spec"]["replicas"] == 2,
        namespace=namespace,
        timeout_s=HANGS_S,
    )


def test_what_a_policy_makes_of_servers_is_named_and_not_fought(
    operator: Replica, controllers: ApiServer, namespace: str
) -> None:
    """One that changes a field of ours and adds another, in this namespace."""
    api, rules = "admissionregistration.k8s.io/v1", {"apiGroups": ["apps"], "apiVersions": ["v1"]}
    pod = "Object.spec.template{spec: Object.spec.template.spec{terminationGracePeriodSeconds: 7}}"
    change = f"Object{{spec: Object.spec{{minReadySeconds: 3, template: {pod}}}}}"
    policy = {
        "apiVersion": api,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "short-ends"},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {
                "resourceRules": [rules | {"operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            },
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": change}}],
        },
    }
    binding = {"apiVersion": api, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": "short-ends"}}
    controllers.kubectl.create([policy, binding | {"spec": {"policyName": "short-ends"}}])
    try:
        trial = ("create", "deployment", "x", "--image=x", "--dry-run=server", "-n", namespace, "-o", "json")
        wait_until(
            lambda: '"minReadySeconds": 3' in controllers.kubectl.run(*trial),
            what="the policy to come into force",
        )
        create(controllers, namespace)
        name = server_of(controllers, namespace)
        for deployment in (name, "router-gateway"):
            field = "spec.template.spec.terminationGracePeriodSeconds"
            said = f"Deployment {deployment}: a mutating policy or webhook changed {field}"
            condition(controllers, namespace, "Contested", said)
        before = requests(operator, "PATCH")
        look_again(operator, controllers, namespace)
        assert requests(operator, "PATCH") == before
    finally:
        controllers.kubectl.delete("mutatingadmissionpolicybinding", "short-ends")
        controllers.kubectl.delete("mutatingadmissionpolicy", "short-ends")


def test_who_serves_is_told_by_uid_may_be_drained_one_by_one_and_is_asked_by_gateways_only(
    operator: Replica, controllers: ApiServer, namespace: str
) -> None:
    create(controllers, namespace, replicas=2)
    name = server_of(controllers, namespace)
    running = {"running": {"startedAt": "2026-01-05T12:00:00Z"}}
    for component in ("server", "gateway"):
        wait_until(
            lambda component=component: len(pods(controllers, namespace, component)) == 2,  # type: ignore[misc]
            what=f"two pods of the {component}",
        )
    servers = pods(controllers, namespace, "server")
    for each in servers:
        play(controllers, namespace, each["metadata"]["name"], container="server", state=running)
    stable = controllers.kubectl.wait_for(
        "modelendpoint",
        "router",
        lambda found: found.get("status", {}).get("stable") and found["status"].get("routes"),
        namespace=namespace,
        timeout_s=HANGS_S,
        what="a stable version",
    )["status"]
    assert stable["routes"]["gateways"] == 0

    policy = controllers.kubectl.get("networkpolicy", "router-servers", namespace=namespace)["spec"]
    allowed = policy["ingress"][0]["from"][0]["podSelector"]
    for component, chosen in (("server", policy["podSelector"]), ("gateway", allowed)):
        selector = ",".join(f"{key}={value}" for key, value in chosen["matchLabels"].items())
        found = controllers.kubectl.list("pods", namespace=namespace, selector=selector)
        assert {each["metadata"]["uid"] for each in found} == {
            each["metadata"]["uid"] for each in pods(controllers, namespace, component)
        }
        assert len(found) == 2

    gateway = pods(controllers, namespace, "gateway")[0]
    forge(controllers, namespace, gateway, container="gateway", state=running, phase="Running")
    ended = {"terminated": {"exitCode": 65, "message": '{"reason": "BadArtifact", "message": "forged"}'}}
    forge(controllers, namespace, servers[0], container="server", state=ended, phase="Failed")
    controllers.kubectl.create(
        version_manifest("v2", baseline="7", planned=True) | {"metadata": metadata_of("v2", namespace)}
    )
    (compared,) = wait_until(
        lambda: controllers.kubectl.list("pods", namespace=namespace, selector="finetune.dev/comparison"),
        what="the pod of a comparison",
    )
    result = evaluate_result().model_dump_json(by_alias=True, exclude_none=True)
    passed = {"terminated": {"exitCode": 0, "message": result}}
    forge(controllers, namespace, compared, container="trainer", state=passed, phase="Succeeded")
    look_again(operator, controllers, namespace)
    status = controllers.kubectl.get("modelendpoint", "router", namespace=namespace)["status"]
    assert status["routes"]["gateways"] == 0
    assert not status["comparisons"]
    assert status.get("candidate") is None
    play(controllers, namespace, compared["metadata"]["name"], container="trainer", state=passed, phase="Succeeded")
    controllers.kubectl.wait_for(
        "modelendpoint",
        "router",
        lambda found: found["status"].get("comparisons"),
        namespace=namespace,
        timeout_s=HANGS_S,
        what="the real comparison",
    )

    for forged in ("forged-server", "forged-gateway"):
        controllers.kubectl.delete("pod", forged, namespace=namespace)
    controllers.kubectl.wait_for(
        "poddisruptionbudget",
        name,
        lambda found: found["status"].get("disruptionsAllowed") == 1,
        namespace=namespace,
        timeout_s=HANGS_S,
        what="one server that may go",
    )
    first, second = (each["metadata"]["name"] for each in servers)
    evict(controllers, namespace, first)
    with pytest.raises(KubectlError, match="disruption budget"):
        evict(controllers, namespace, second)


def evict(apiserver: ApiServer, namespace: str, pod: str) -> None:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    apiserver.kubectl.run("create", "--raw", path, "-f", "-", text=json.dumps(eviction))


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
        timeout_s=HANGS_S,
        what="the three servers that the autoscaler wants at least",
    )
    stored = controllers.kubectl.get("modelendpoint", "router", namespace=namespace)
    assert stored["spec"]["serving"]["replicas"] == 3
    assert not [each for each in stored["status"]["conditions"] if each["type"] == "Contested"]
