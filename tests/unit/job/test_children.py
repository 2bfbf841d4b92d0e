"""The manifests of all children, against golden files.

After a change that is meant: `FINETUNE_UPDATE_GOLDEN=1 pytest tests/unit/job/test_children.py`, then read the diff.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.conformance.golden import check
from tests.conformance.objects import CONFIG, START, all_results, digest, evaluate_result, job, plan_of

from finetune_api.finetunejob import EvaluationStatus, FineTuneJob, StageName
from finetune_api.modelversion import ModelVersion
from finetune_api.results import Sharing
from finetune_api.run import run_adapter
from finetune_operator.attempts.evaluation import baseline_order
from finetune_operator.core.ports import Door, Manifest
from finetune_operator.gates.policy import Judgement
from finetune_operator.job.children import children_of
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.resolve import resolve
from finetune_operator.job.version import version_manifest

DOOR = Door(url="https://finetune-door.finetune-system.svc", ca_bundle="-----BEGIN CERTIFICATE-----\nMII\n")

LARGE = job(
    labels={"kueue.x-k8s.io/queue-name": "team-a", "team": "search"},
    annotations={"kueue.x-k8s.io/podset-required-topology": "cloud.provider.com/rack", "note": "private"},
    artifacts={"uri": "s3://acme-models/runs", "secretRef": {"name": "s3"}},
    model={"secretRef": {"name": "hub"}},
    data={"sources": [{"name": "tickets", "uri": "pvc://tickets/all.jsonl"}], "secretRef": {"name": "s3"}},
    training={"globalBatchSize": 64},
    compute={
        "nodes": 2,
        "gpusPerNode": 8,
        "gpuResource": "amd.com/gpu",
        "gpuMemory": "80Gi",
        "network": {"interface": "net1", "resources": {"rdma/ib": 1}},
        "resources": {"requests": {"cpu": "16"}, "limits": {"memory": "128Gi"}},
        "podTemplate": {
            "metadata": {
                "labels": {"cost-centre": "42", "finetune.dev/job": "other"},
                "annotations": {"sidecar": "no"},
            },
            "spec": {
                "nodeSelector": {"gpu": "h100"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "imagePullSecrets": [{"name": "registry"}],
                "priorityClassName": "batch",
                "schedulerName": "volcano",
                "topologySpreadConstraints": [
                    {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
                ],
                "serviceAccountName": "trainer",
            },
        },
    },
)
SMALL = job()

PROVEN = Judgement(accepted=True, reason="Proven", message="proven")


def children(of: FineTuneJob, *, stage: StageName, attempt: int = 1, door: Door | None = DOOR) -> tuple[Manifest, ...]:
    return children_of(
        job=of,
        plan=plan_of(of),
        stage=stage,
        attempt=attempt,
        results=all_results(),
        config=CONFIG,
        door=door,
    )


@pytest.mark.parametrize(
    ("name", "of", "stage", "attempt"),
    [
        ("prepare", SMALL, "Prepare", 1),
        ("train_one_pod", SMALL, "Train", 1),
        ("evaluate", SMALL, "Evaluate", 1),
        ("prepare_large", LARGE, "Prepare", 1),
        ("train_gang_of_gpus", LARGE, "Train", 3),
        ("evaluate_on_one_gpu", LARGE, "Evaluate", 1),
    ],
)
def test_children_are_as_recorded(name: str, of: FineTuneJob, stage: StageName, attempt: int) -> None:
    check(name, list(children(of, stage=stage, attempt=attempt)))


def test_the_version_is_as_recorded() -> None:
    evaluation = EvaluationStatus(verdict="Pass", results=evaluate_result().results, report="pvc://models/report.html")
    version = version_manifest(
        job=SMALL, plan=plan_of(SMALL), results=all_results(), evaluation=evaluation, judgement=PROVEN, taken=False
    )
    check("model_version", [version])
    ModelVersion.model_validate(version)


def test_the_version_names_the_configuration_by_which_it_was_trained() -> None:
    of = job(compute={"strategy": "DeepSpeedZeRO2", "configRef": {"name": "ours", "key": "ds.json"}})
    found = all_results()
    results = replace(found, train=found.train and found.train.model_copy(update={"deepspeed": digest("c")}))
    evaluation = EvaluationStatus(verdict="Pass", results=evaluate_result().results)
    asked = {"results": results, "evaluation": evaluation, "judgement": PROVEN, "taken": False}
    version = version_manifest(job=of, plan=plan_of(of), **asked)  # type: ignore[arg-type]
    assert version["spec"]["lineage"]["deepspeed"] == {"name": "ours", "key": "ds.json", "digest": digest("c")}


def test_the_plan_is_as_recorded() -> None:
    check("plan", [plan_of(LARGE).to_dict()])


@pytest.mark.parametrize("of", [SMALL, LARGE])
@pytest.mark.parametrize("stage", ["Prepare", "Train", "Evaluate"])
def test_pods_are_restricted(of: FineTuneJob, stage: StageName) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and more."""
    pod = children(of, stage=stage)[-1]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"command", "args"} & set(container)
    allowed = {"configMap", "emptyDir", "projected", "persistentVolumeClaim"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])


def test_containers_understand_their_orders() -> None:
    for stage in ("Prepare", "Train", "Evaluate"):
        config_map = children(LARGE, stage=stage)[0]  # type: ignore[arg-type]
        order = run_adapter.validate_json(config_map["data"]["run.json"])
        assert order.stage == stage
        assert config_map["immutable"] is True


def test_the_trainer_of_an_earlier_plan_is_asked_for_no_more_than_it_knows() -> None:
    """Its image is the plan's, and it refuses orders with fields that it does not know."""
    stored = plan_of(job()).to_dict()
    for later in ("triesModel", "triesSteps", "memory"):
        stored.pop(later, None)
    plan = ResolvedPlan.model_validate(stored)
    manifests = children_of(
        job=job(), plan=plan, stage="Prepare", attempt=2, results=all_results(), config=CONFIG, door=DOOR
    )
    (order,) = (json.loads(each["data"]["run.json"]) for each in manifests if each["kind"] == "ConfigMap")
    first = {"stage", "identity", "locations", "model", "sources", "maxBadRows", "maxTruncatedFraction", "maxLength"}
    assert set(order) <= {*first, "split", "evaluationDataset"}


def test_training_shares_the_model_as_prepare_chose() -> None:
    """Where it chose nothing (a strategy that is named, an image that knew no choice) the plan's own word counts."""
    plan, found = plan_of(job()), all_results()
    assert found.prepare is not None
    asked = {"job": job(), "attempt": 1, "config": CONFIG, "door": DOOR}

    def order(sharing: Sharing | None, stage: StageName = "Train") -> dict[str, Any]:
        results = replace(found, prepare=found.prepare and found.prepare.model_copy(update={"sharing": sharing}))
        chosen = plan.as_chosen(results.prepare)
        (config_map, *_) = children_of(stage=stage, plan=chosen, results=results, **asked)  # type: ignore[arg-type]
        read: dict[str, Any] = json.loads(config_map["data"]["run.json"])
        return read

    assert (order(None)["strategy"], order(None).get("offload")) == ("DDP", None)
    chosen = order(Sharing(strategy="FSDP2", offload=True, because="DDP would need 145 GiB"))
    assert (chosen["strategy"], chosen["offload"]) == ("FSDP2", {"optimizer": True, "parameters": True})
    asking = order(None, "Prepare")["memory"]
    assert (asking["strategy"], asking["activationCheckpointing"]) == ("Auto", "Auto")
    assert "activationCheckpointing" not in chosen, "trainers of earlier versions need not know of it"
    again = order(Sharing(strategy="DDP", activation_checkpointing=True, because="DDP would need 145 GiB"))
    assert (again["strategy"], again["activationCheckpointing"]) == ("DDP", True)
    plan = plan_of(job(training={"activationCheckpointing": "Always"}, compute={"strategy": "DeepSpeedZeRO2"}))
    named = order(Sharing(strategy="DeepSpeedZeRO2", offload=True, activation_checkpointing=True, because=""))
    assert (named["strategy"], named.get("offload"), named["activationCheckpointing"]) == ("DeepSpeedZeRO2", None, True)
    assert order(None)["activationCheckpointing"]


def test_what_prepare_chooses_by() -> None:
    memory = plan_of(LARGE).memory
    assert memory is not None
    assert (memory.nodes, memory.processes_per_node, memory.gpus, memory.rows) == (2, 8, True, 4)
    assert (memory.gpu_memory, memory.memory_limit) == (80 * 2**30, 128 * 2**30)
    packed = plan_of(job(training={"packing": True}, compute={"strategy": "FSDP2", "processesPerNode": 2})).memory
    assert packed is not None
    assert (packed.rows, packed.strategy, packed.gpus, packed.memory_limit) == (1, "FSDP2", False, None)


def test_a_users_labels_cannot_hide_a_pod() -> None:
    labels = children(LARGE, stage="Train")[-1]["spec"]["template"]["metadata"]["labels"]
    assert labels["cost-centre"] == "42"
    assert labels["finetune.dev/job"] == "router"
    assert "team" not in labels


def test_without_a_door_nothing_is_reported_and_no_token_is_mounted() -> None:
    text = json.dumps(children(SMALL, stage="Train", door=None))
    assert "KUBEFLOW" not in text
    assert "serviceAccountToken" not in text


def test_only_training_gets_a_token() -> None:
    assert "serviceAccountToken" in json.dumps(children(SMALL, stage="Train"))
    for stage in ("Prepare", "Evaluate"):
        assert "serviceAccountToken" not in json.dumps(children(SMALL, stage=stage))  # type: ignore[arg-type]


def test_a_door_on_loopback_needs_no_token() -> None:
    pod = children(SMALL, stage="Train", door=Door(url="http://127.0.0.1:9000"))[-1]["spec"]["template"]["spec"]
    environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert environment["KUBEFLOW_TRAINER_SERVER_URL"] == "http://127.0.0.1:9000/v1/progress/ml/router"
    assert "KUBEFLOW_TRAINER_SERVER_TOKEN" not in environment


def test_a_queue_begins_suspended_and_only_then() -> None:
    assert children(LARGE, stage="Train")[-1]["spec"]["suspend"] is True
    assert "suspend" not in children(SMALL, stage="Train")[-1]["spec"]


def test_memory_is_shared_where_several_processes_of_a_pod_train() -> None:
    def shared(of: FineTuneJob, **where: Any) -> list[Any]:
        volumes = children(of, **where)[-1]["spec"]["template"]["spec"]["volumes"]
        return [each["emptyDir"].get("sizeLimit") for each in volumes if each["name"] == "shm"]

    assert shared(job(compute={"processesPerNode": 4}), stage="Train") == ["4Gi"]
    assert shared(job(compute={"nodes": 4, "gpusPerNode": 1}), stage="Train") == []
    assert shared(LARGE, stage="Evaluate") == []


def test_a_wish_for_topology_is_the_gangs_alone() -> None:
    """A queue's flavours for CPUs may have no topology; Kueue admits nobody there who asks for one."""
    assert "podset-required-topology" in json.dumps(children(LARGE, stage="Train"))
    for stage in ("Prepare", "Evaluate"):
        assert "podset-required-topology" not in json.dumps(children(LARGE, stage=stage))  # type: ignore[arg-type]


def test_the_baseline_of_a_run_is_pinned() -> None:
    evaluation = EvaluationStatus(verdict="Pass", results=evaluate_result().results)
    manifest = version_manifest(
        job=SMALL, plan=plan_of(SMALL), results=all_results(), evaluation=evaluation, judgement=PROVEN, taken=False
    )
    manifest["metadata"] |= {"uid": "11111111-2222", "creationTimestamp": START.isoformat()}
    version = ModelVersion.model_validate(manifest)
    plan = resolve(job=SMALL, config=CONFIG, baseline=baseline_order(version))
    made = children_of(
        job=SMALL, plan=plan, stage="Evaluate", attempt=1, results=all_results(), config=CONFIG, door=None
    )
    order = json.loads(made[0]["data"]["run.json"])
    assert order["baseline"]["name"] == "router"
    assert order["baseline"]["uid"] == "11111111-2222"
    assert order["baseline"]["artifact"]["digest"] == digest("a")
    assert order["baseline"]["dataManifest"].endswith("manifest.json")


def test_each_stage_may_have_nodes_of_its_own() -> None:
    def on(pool: str) -> dict[str, Any]:
        return {"spec": {"nodeSelector": {"pool": pool}}}

    of = job(compute={"podTemplate": on("gpu")}, data={"podTemplate": on("cpu")}, evaluation={"podTemplate": on("t4")})
    pools = {
        stage: children(of, stage=stage)[-1]["spec"]["template"]["spec"]["nodeSelector"]["pool"]
        for stage in ("Prepare", "Train", "Evaluate")
    }
    assert pools == {"Prepare": "cpu", "Train": "gpu", "Evaluate": "t4"}
    shared = job(compute={"podTemplate": on("gpu")})
    assert children(shared, stage="Prepare")[-1]["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "gpu"}


def test_pods_pull_with_the_secrets_of_the_operator_and_of_the_job() -> None:
    config = CONFIG.model_copy(update={"image_pull_secrets": ("mirror", "registry")})
    for of, names in ((SMALL, ["mirror", "registry"]), (LARGE, ["registry", "mirror"])):
        made = children_of(
            job=of, plan=plan_of(of), stage="Train", attempt=1, results=all_results(), config=config, door=DOOR
        )
        (pod,) = [each["spec"]["template"]["spec"] for each in made if each["kind"] == "Job"]
        assert pod["imagePullSecrets"] == [{"name": name} for name in names]
