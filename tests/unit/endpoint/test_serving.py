"""The manifests that serve a version: word for word as recorded, and restricted whatever the runtime."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.golden import check
from tests.simulation.endpoint_world import CONFIG, EndpointWorld, endpoint_manifest, version_manifest

from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_api.run import ServeOrder
from finetune_gateway.config import GatewayConfig
from finetune_operator.attempts.manifests import RUN_KEY
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import Door
from finetune_operator.endpoint.names import owned
from finetune_operator.endpoint.serving.gateway import gateway_manifests
from finetune_operator.endpoint.serving.guards import server_budget, server_policy
from finetune_operator.endpoint.serving.manifests import render_revision, rendered, scaled, unservable

VLLM_CONFIG = OperatorConfig(
    trainer_image="trainer:1",
    gateway_image="gateway:1",
    vllm_image="vllm/vllm-openai:v0",
    vllm_cpu_image="vllm/vllm-openai-cpu:v0",
)


def endpoint(**spec: Any) -> ModelEndpoint:
    manifest = endpoint_manifest()
    manifest["metadata"]["uid"] = "e-uid"
    manifest["spec"] |= spec
    return ModelEndpoint.from_object(manifest)


def version(**spec: Any) -> ModelVersion:
    manifest = version_manifest("v1")
    manifest["metadata"]["uid"] = "v-uid"
    manifest["spec"] |= {"method": {"type": "LoRA", "lora": {"rank": 16}}} | spec
    return ModelVersion.model_validate(manifest)


def servers(runtime: str) -> tuple[Any, ...]:
    serving = {"runtime": runtime, "gpus": 2 if runtime == "VLLM" else 0}
    revision = render_revision(endpoint=endpoint(serving=serving), version=version(), config=VLLM_CONFIG)
    return rendered(revision)


@pytest.mark.parametrize("runtime", ["Transformers", "VLLM"])
def test_servers_are_as_recorded(runtime: str) -> None:
    check(f"servers_{runtime.lower()}", list(servers(runtime)))


def test_what_servers_share_in_memory_is_bounded() -> None:
    def limit(config: OperatorConfig, gpus: int) -> list[Any]:
        serving = {"runtime": "VLLM", "gpus": gpus}
        revision = render_revision(endpoint=endpoint(serving=serving), version=version(), config=config)
        (deployment,) = [each for each in rendered(revision) if each["kind"] == "Deployment"]
        volumes = deployment["spec"]["template"]["spec"]["volumes"]
        return [each["emptyDir"].get("sizeLimit") for each in volumes if each["name"] == "shm"]

    assert limit(VLLM_CONFIG, 2) == ["3Gi"]
    assert limit(VLLM_CONFIG.model_copy(update={"shm_size_limit": "8Gi"}), 2) == ["8Gi"]


def test_a_gateway_is_as_recorded() -> None:
    door = Door(url="https://door.example", ca_bundle="CERTIFICATE\n")
    gateway = {"replicas": 3, "apiKeysSecretRef": {"name": "keys"}, "limits": {"bodyBytes": 4096}}
    check("gateway", list(gateway_manifests(endpoint=endpoint(gateway=gateway), config=CONFIG, door=door)))


@pytest.mark.parametrize("runtime", ["Transformers", "VLLM"])
def test_no_kubelet_restarts_what_is_slow_on_a_busy_node(runtime: str) -> None:
    """One restarted the version in production, which six times in a row took more than 5 s to say that it lives."""
    gateway = gateway_manifests(endpoint=endpoint(), config=CONFIG, door=None)
    deployments = [each for each in (*servers(runtime), *gateway) if each["kind"] == "Deployment"]
    assert len(deployments) == 2
    for deployment in deployments:
        probe = deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
        assert probe["timeoutSeconds"] >= 30
        assert probe["timeoutSeconds"] * probe["failureThreshold"] >= 180


def test_a_gateway_knows_what_the_endpoint_says_of_it() -> None:
    gateway = {"heartbeatSeconds": 5, "allowedOrigins": ["https://one.example", "https://two.example"]}
    config = CONFIG.model_copy(update={"tracing_endpoint": "http://collector:4318"})
    found = gateway_manifests(endpoint=endpoint(gateway=gateway), config=config, door=None)
    (deployment,) = [each for each in found if each["kind"] == "Deployment"]
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    environment = {each["name"]: each.get("value", "") for each in variables}
    read = GatewayConfig.from_environment(environment)
    assert (read.heartbeat_seconds, read.allowed_origins) == (5.0, frozenset(gateway["allowedOrigins"]))
    assert read.tracing_endpoint == "http://collector:4318"


@pytest.mark.parametrize(
    ("own", "planned", "secrets"),
    [(None, True, ["bucket"]), ({"name": "reader"}, True, ["reader"]), (None, False, [])],
    ids=["of the job", "of the endpoint", "none"],
)
@pytest.mark.parametrize("runtime", ["Transformers", "VLLM"])
def test_models_are_read_with_secrets(
    runtime: str, own: dict[str, str] | None, planned: bool, secrets: list[str]
) -> None:
    serving = {"runtime": runtime, "gpus": 2, "secretRef": own}
    made = version(evaluation=version_manifest("v1", planned=planned)["spec"]["evaluation"])
    found = rendered(render_revision(endpoint=endpoint(serving=serving), version=made, config=VLLM_CONFIG))
    (deployment,) = [each for each in found if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    reader, *others = pod["initContainers"] + pod["containers"] if runtime == "VLLM" else pod["containers"]
    assert [each["secretRef"]["name"] for each in reader.get("envFrom", [])] == secrets
    optional = [each["secretRef"].get("optional", False) for each in reader.get("envFrom", [])]
    assert optional == [own is None] * len(secrets), (
        "what the job needed may be gone, what is asked for here must be there"
    )
    assert not any("envFrom" in other for other in others), "what serves clients does not see them"


@pytest.mark.parametrize("runtime", ["Transformers", "VLLM"])
def test_pods_are_restricted(runtime: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and more."""
    (deployment,) = [each for each in servers(runtime) if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for volume in pod["volumes"]:
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["readOnly"] is True


def test_replicas_follow_the_spec_and_nothing_else_does() -> None:
    manifests = servers("Transformers")
    more = scaled(manifests, replicas=5)
    changed = [(old, new) for old, new in zip(manifests, more, strict=True) if old != new]
    ((old, new),) = changed
    assert new["spec"].pop("replicas") == 5
    assert old["spec"] | {"replicas": None} == new["spec"] | {"replicas": None}


@pytest.mark.parametrize(
    ("recorded", "limit"),
    [
        ({"task": "SequenceClassification", "contextTokens": 128, "training": {"maxLength": 256}}, 128),
        ({"task": "SequenceClassification", "training": {"maxLength": 256}}, 256),
        ({"task": "SequenceClassification", "training": {}}, None),
        ({"task": "Seq2Seq", "training": {"maxLength": 256}}, 256),
        ({"task": "Chat", "contextTokens": 4096, "training": {"maxLength": 256}}, 4096),
        ({"task": "Chat", "training": {"maxLength": 256}}, None),
    ],
)
def test_servers_keep_to_what_was_evaluated_also_of_versions_that_do_not_name_it(
    recorded: dict[str, Any], limit: int | None
) -> None:
    """`contextTokens` is younger than the first versions; those of classifiers were cut at training.maxLength."""
    served = endpoint(serving={"runtime": "FastAPI" if recorded["task"] != "Chat" else "Transformers"})
    manifests = rendered(render_revision(endpoint=served, version=version(**recorded), config=CONFIG))
    (order,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    assert ServeOrder.model_validate_json(order["data"][RUN_KEY]).context_tokens == limit


@pytest.mark.parametrize("runtime", ["Transformers", "VLLM"])
def test_servers_compute_as_was_evaluated(runtime: str) -> None:
    served = endpoint(serving={"runtime": runtime, "gpus": 1})
    recorded = version()
    evaluation = recorded.spec.evaluation.to_dict() | {"precision": "FP32"}
    manifests = rendered(render_revision(endpoint=served, version=version(evaluation=evaluation), config=CONFIG))
    (order,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    assert ServeOrder.model_validate_json(order["data"][RUN_KEY]).precision == "FP32"
    (deployment,) = [each for each in manifests if each["kind"] == "Deployment"]
    command = deployment["spec"]["template"]["spec"]["containers"][0].get("command", [])
    assert runtime == "Transformers" or " --dtype float32" in " ".join(command)


def vllm_pod(serving: dict[str, Any]) -> dict[str, Any]:
    served = endpoint(serving={"runtime": "VLLM", **serving})
    revision = render_revision(endpoint=served, version=version(), config=VLLM_CONFIG)
    (deployment,) = [each for each in rendered(revision) if each["kind"] == "Deployment"]
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def test_vllm_on_cpus_has_an_image_of_its_own_and_the_threads_of_its_limit() -> None:
    resources = {"limits": {"cpu": "4", "memory": "8Gi"}}
    (server,) = vllm_pod({"gpus": 0, "resources": resources})["containers"]
    assert (server["image"], server["resources"]) == ("vllm/vllm-openai-cpu:v0", resources)
    assert f"--kv-cache-memory-bytes {2 << 30}" in " ".join(server["command"])
    environment = {each["name"]: each.get("value", each.get("valueFrom")) for each in server["env"]}
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind", "pods of a node would all be bound to the same cores"
    assert environment["OMP_NUM_THREADS"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
    (on_gpus,) = vllm_pod({"gpus": 1})["containers"]
    assert on_gpus["image"] == "vllm/vllm-openai:v0"
    assert not any("CPU" in each["name"] or "OMP" in each["name"] for each in on_gpus["env"])


def test_vllm_ends_what_is_under_way_before_it_is_killed() -> None:
    """By default it aborts all of it on SIGTERM. Its teardown, after the last answer, took up to 20 s."""
    pod = vllm_pod({"gpus": 1})
    (server,) = pod["containers"]
    seconds = int(server["command"][server["command"].index("--shutdown-timeout") + 1])
    before = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 0 < seconds <= pod["terminationGracePeriodSeconds"] - before - 20


def test_vllm_reports_to_nobody() -> None:
    (server,) = vllm_pod({"gpus": 1})["containers"]
    assert {"name": "VLLM_NO_USAGE_STATS", "value": "1"} in server["env"]


def test_what_vllm_cannot_serve_is_told() -> None:
    served = endpoint(serving={"runtime": "VLLM", "gpus": 1})
    odd = version(method={"type": "IA3"})
    assert "LoRA adapters" in str(unservable(endpoint=served, version=odd, config=VLLM_CONFIG))
    assert unservable(endpoint=served, version=version(), config=VLLM_CONFIG) is None
    assert unservable(endpoint=endpoint(), version=odd, config=CONFIG) is None


def test_only_gateways_and_what_scrapes_metrics_reach_the_servers() -> None:
    policy = server_policy(endpoint=endpoint(), config=CONFIG)
    (deployment,) = (each for each in servers("FastAPI") if each["kind"] == "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = policy["spec"]["ingress"]
    gateways, monitoring = rule["from"]
    (gateway,) = (
        each
        for each in gateway_manifests(endpoint=endpoint(), config=CONFIG, door=None)
        if each["kind"] == "Deployment"
    )
    theirs = gateway["spec"]["template"]["metadata"]["labels"]
    assert gateways["podSelector"]["matchLabels"].items() <= theirs.items()
    assert not gateways["podSelector"]["matchLabels"].items() <= labels.items(), "servers do not reach each other"
    assert monitoring == CONFIG.metrics_from[0]
    (port,) = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    assert policy["spec"]["policyTypes"] == ["Ingress"]


def test_endpoints_with_the_same_version_keep_apart() -> None:
    """Two budgets for one pod: it can never be evicted. A Service that leads to servers which let only others in: half
    of the requests are lost."""
    prod, trial = endpoint(), endpoint()
    trial = trial.model_copy(update={"metadata": trial.metadata.model_copy(update={"name": "trial"})})
    for mine, other in ((prod, trial), (trial, prod)):
        recorded = rendered(render_revision(endpoint=mine, version=version(), config=CONFIG))
        found = {each["kind"]: owned(each, endpoint=mine) for each in recorded}
        labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
        own, theirs = (
            server_budget(endpoint=each, version_uid="v-uid")["spec"]["selector"]["matchLabels"]
            for each in (mine, other)
        )
        assert own.items() <= labels.items()
        assert not theirs.items() <= labels.items()
        assert found["Service"]["spec"]["selector"].items() <= labels.items()
        assert found["Service"]["spec"]["selector"].items() >= own.items()


def test_pods_that_do_not_serve_hold_up_no_drain() -> None:
    """Of one server that crashes, none may be unavailable more; without the policy it could never be evicted."""
    gateways = gateway_manifests(endpoint=endpoint(), config=CONFIG, door=None)
    budgets = [each for each in gateways if each["kind"] == "PodDisruptionBudget"]
    budgets.append(server_budget(endpoint=endpoint(), version_uid="v-uid"))
    assert [each["spec"]["unhealthyPodEvictionPolicy"] for each in budgets] == ["AlwaysAllow"] * 2


def test_ids_may_be_left_to_the_cluster() -> None:
    ranges = CONFIG.model_copy(
        update={"run_as_user": None, "run_as_group": None, "fs_group": None, "seccomp_profile": None}
    )
    for each in gateway_manifests(endpoint=endpoint(), config=ranges, door=None):
        if each["kind"] == "Deployment":
            security = each["spec"]["template"]["spec"]["securityContext"]
            assert security == {"runAsNonRoot": True, "fsGroupChangePolicy": "OnRootMismatch"}


@pytest.mark.parametrize(("gpus", "variable"), [(0, "FINETUNE_VLLM_CPU_IMAGE"), (1, "FINETUNE_VLLM_IMAGE")])
async def test_an_endpoint_waits_for_the_image_of_its_kind(gpus: int, variable: str) -> None:
    other = {"vllm_cpu_image" if gpus else "vllm_image": "vllm:1"}
    world = EndpointWorld()
    world.restart_operator(config=CONFIG.model_copy(update=other))
    await world.create(endpoint_manifest() | {"spec": {"task": "Chat", "serving": {"runtime": "VLLM", "gpus": gpus}}})
    status = await world.settle()
    assert variable in str(status.message)
    world.restart_operator(config=CONFIG.model_copy(update={"vllm_image": "vllm:1", "vllm_cpu_image": "vllm:1"}))
    assert "image" not in str((await world.settle()).message)
