"""Two operators with names of their own in one cluster, as processes: neither touches what the other works on."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from tests.api.people import endpoint
from tests.api.replica import NAMESPACE, Replica, replicas
from tests.api.scripted import ScriptedPods
from tests.conformance.objects import job_manifest, prepare_result
from tests.harness import ApiServer, Object, wait_until

GREEN = "finetune-green"
GATEWAY = {"FINETUNE_GATEWAY_IMAGE": "localhost/finetune-gateway:test"}
FOREIGN = 'finetune_foreign_instance_objects{kind="%s"}'
KINDS = ("FineTuneJob", "ModelEndpoint")
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "models"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}


def install_again(apiserver: ApiServer, *, namespace: str) -> None:
    """The committed rights once more, for an operator in another namespace."""
    for file in ("namespace", "operator", "own_namespace"):
        text = Path(f"manifests/rbac/{file}.yaml").read_text().replace(NAMESPACE, namespace)
        for manifest in yaml.safe_load_all(text):
            if manifest["kind"] == "ClusterRoleBinding":
                manifest["metadata"]["name"] += f"-{namespace}"
            apiserver.kubectl.apply(manifest)


def blues(apiserver: ApiServer, kind: str, *, besides: str) -> list[Object]:
    """Objects of the first operator, also those that other tests left behind; none of a namespace left out."""
    found = [each for each in apiserver.kubectl.list(kind) if each.get("status", {}).get("instance") == NAMESPACE]
    return [each for each in found if each["metadata"]["namespace"] != besides]


def written(operator: Replica) -> dict[str, str]:
    """How often it has written what, but for its own Lease and door, and Events."""
    lines = operator.get("/metrics")[1].splitlines()
    pattern = re.compile(r'finetune_kubernetes_requests_total{method="(POST|PUT|PATCH|DELETE)",resource="(\w+)",.*')
    own = ("leases", "secrets", "endpointslices", "events", "configmaps", "tokenreviews")
    return {line: found[2] for line in lines if (found := pattern.match(line)) and found[2] not in own}


def test_each_object_has_one_operator_and_the_other_says_so(
    crds: ApiServer, controllers: ApiServer, namespace: str, tmp_path: Path
) -> None:
    """`green` comes second, leaves alone what `blue` works on, and knows nothing of a namespace that it leaves out."""
    controllers.kubectl.apply(Path("manifests/rbac"))
    install_again(controllers, namespace=GREEN)
    (tmp_path / "blue").mkdir()
    (tmp_path / "green").mkdir()
    with (
        controllers.namespace_named("left-out") as apart,
        replicas(controllers, tmp_path / "blue", "blue", environment=GATEWAY) as (blue,),
    ):
        for where in (namespace, apart):
            controllers.kubectl.create(CLAIM, namespace=where)
            controllers.kubectl.create([job_manifest(namespace=where), endpoint(namespace=where)])
        for kind in KINDS:
            wait_until(lambda kind=kind: blues(controllers, kind, besides=apart), what=f"blue to take the {kind}")  # type: ignore[misc]
        pods = ScriptedPods(kubectl=controllers.kubectl, namespace=namespace, job="router")
        preparing = pods.of(stage="Prepare")
        environment = GATEWAY | {"FINETUNE_EXCLUDED_NAMESPACES": apart}
        with replicas(controllers, tmp_path / "green", "green", environment=environment, namespace=GREEN) as (green,):
            for kind in KINDS:
                wait_until(
                    lambda kind=kind: green.metric(FOREIGN % kind) == len(blues(controllers, kind, besides=apart)),  # type: ignore[misc]
                    what=f"green to meet each {kind} of blue",
                    explain=lambda: green.get("/metrics")[1],
                )
                assert blue.metric(FOREIGN % kind) == 0
            pods.run(preparing)
            pods.succeed(preparing, result=prepare_result())
            pods.of(stage="Train")
            assert written(green) == {}
            for where in (namespace, apart):
                told = [
                    each["regarding"]["kind"] if "regarding" in each else each["involvedObject"]["kind"]
                    for each in controllers.kubectl.list("events", namespace=where)
                    if each["reason"] == "OtherInstance"
                ]
                assert sorted(told) == (list(KINDS) if where == namespace else [])
                for kind in KINDS:
                    found = controllers.kubectl.get(kind, "router", namespace=where)
                    assert found["status"]["instance"] == NAMESPACE
