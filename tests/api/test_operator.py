"""Whole runs on a real apiserver: the operator as a process with its committed rights, real Jobs, scripted pods."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.api.people import endpoint
from tests.api.replica import NAMESPACE, Replica, replicas, seconds_until
from tests.api.scripted import ScriptedPods
from tests.conformance.objects import evaluate_result, job_manifest, prepare_result, train_result
from tests.harness import ApiServer, KubectlError, Object, wait_until
from tests.patience import HANGS_S

from finetune_api.progress import TOKEN_AUDIENCE, progress_path
from finetune_api.results import ExitCode


@pytest.fixture(scope="module")
def installed(crds: ApiServer, controllers: ApiServer) -> ApiServer:
    controllers.kubectl.apply(Path("manifests/rbac"))
    return controllers


@pytest.fixture
def operator(installed: ApiServer, tmp_path: Path) -> Iterator[Replica]:
    """One replica. It must end without having met a right that it lacks, and without a fault of its own."""
    with replicas(installed, tmp_path, "one") as (replica,):
        yield replica
        assert replica.metric('finetune_reconcile_errors_total{reason="Internal"}') == 0
        assert not replica.said("is forbidden: User"), "it lacks a right"
        replica.signal(signal.SIGTERM)
        assert replica.wait_for_end() == 0


@pytest.fixture
def pods(installed: ApiServer, namespace: str) -> ScriptedPods:
    """A namespace with a claim to train on, and the pods of the job `router` in it."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    installed.kubectl.create(claim, namespace=namespace)
    return ScriptedPods(kubectl=installed.kubectl, namespace=namespace, job="router")


def create(pods: ScriptedPods, **changes: Any) -> None:
    pods.kubectl.create(job_manifest(namespace=pods.namespace, **changes))


def wait_for_phase(pods: ScriptedPods, phase: str) -> Object:
    return pods.kubectl.wait_for(
        "finetunejob",
        "router",
        lambda job: job.get("status", {}).get("phase") == phase,
        namespace=pods.namespace,
        timeout_s=HANGS_S,
        what=phase,
    )


def wait_for_message(pods: ScriptedPods, kind: str, name: str, message: str) -> Object:
    return pods.kubectl.wait_for(
        kind,
        name,
        lambda found: message in found.get("status", {}).get("message", ""),
        namespace=pods.namespace,
        timeout_s=HANGS_S,
        what=message,
    )


def conditions(job: Object) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in job["status"]["conditions"]}


def run_stage(pods: ScriptedPods, *, stage: str, phase: str, result: Any, attempt: int = 1, count: int = 1) -> None:
    names = pods.of(stage=stage, attempt=attempt, count=count)
    pods.run(names)
    wait_for_phase(pods, phase)
    pods.succeed(names, result=result)


def test_from_apply_to_succeeded(operator: Replica, pods: ScriptedPods) -> None:
    create(pods)
    run_stage(pods, stage="Prepare", phase="Preparing", result=prepare_result())
    training = pods.of(stage="Train")
    pods.run(training)
    wait_for_phase(pods, "Training")
    _forge(operator, pods, training[0])
    pods.succeed(training, result=train_result())
    run_stage(pods, stage="Evaluate", phase="Evaluating", result=evaluate_result())
    job = wait_for_phase(pods, "Succeeded")
    assert conditions(job)["Ready"] == ("True", "Succeeded")
    assert not {"Reconciling", "Stalled"} & {name for name, (value, _) in conditions(job).items() if value == "True"}
    assert job["status"]["observedGeneration"] == job["metadata"]["generation"]
    assert [stage["state"] for stage in job["status"]["stages"]] == ["Complete"] * 3
    assert job["status"]["evaluation"]["verdict"] == "Pass"
    version = pods.kubectl.get("modelversion", job["status"]["modelVersion"]["name"], namespace=pods.namespace)
    assert version["spec"]["artifact"]["digest"] == train_result().artifact.digest
    assert version["spec"]["lineage"]["job"] == {"name": "router", "uid": job["metadata"]["uid"]}
    reasons = {event["reason"] for event in pods.kubectl.list("events", namespace=pods.namespace)}
    assert {"Preparing", "Training", "Evaluating", "Succeeded"} <= reasons
    assert not {"annotations", "finalizers", "labels"} & set(job["metadata"])
    _wait_for_succeeded(operator, pods)


def test_deleting_the_job_removes_its_children_and_leaves_the_version(operator: Replica, pods: ScriptedPods) -> None:
    create(pods)
    run_stage(pods, stage="Prepare", phase="Preparing", result=prepare_result())
    run_stage(pods, stage="Train", phase="Training", result=train_result())
    run_stage(pods, stage="Evaluate", phase="Evaluating", result=evaluate_result())
    wait_for_phase(pods, "Succeeded")
    pods.kubectl.delete("finetunejob", "router", namespace=pods.namespace)
    selector = "finetune.dev/job=router"
    wait_until(
        lambda: not pods.kubectl.list("jobs,pods,configmaps,services", namespace=pods.namespace, selector=selector),
        what="the end of the children",
    )
    assert len(pods.kubectl.list("modelversions", namespace=pods.namespace)) == 1
    _wait_for_succeeded(operator, pods)


def test_a_rejected_model_is_recorded_as_such(operator: Replica, pods: ScriptedPods) -> None:
    create(pods)
    run_stage(pods, stage="Prepare", phase="Preparing", result=prepare_result())
    run_stage(pods, stage="Train", phase="Training", result=train_result())
    run_stage(pods, stage="Evaluate", phase="Evaluating", result=evaluate_result(verdict="Fail"))
    job = wait_for_phase(pods, "Rejected")
    assert conditions(job)["Ready"][0] == "False"
    assert conditions(job)["Stalled"][0] == "True"
    (version,) = pods.kubectl.list("modelversions", namespace=pods.namespace)
    assert version["spec"]["evaluation"]["verdict"] == "Fail"


def test_two_nodes_are_one_gang_and_report_through_the_door(operator: Replica, pods: ScriptedPods) -> None:
    create(pods, compute={"nodes": 2})
    run_stage(pods, stage="Prepare", phase="Preparing", result=prepare_result())
    training = pods.of(stage="Train", count=2)
    service = pods.kubectl.get("service", "router-train-1", namespace=pods.namespace)
    assert service["spec"]["clusterIP"] == "None"
    pods.run(training)
    wait_for_phase(pods, "Training")
    report = {"trainerStatus": {"progressPercentage": 42, "metrics": [{"name": "loss", "value": "1.25"}]}}
    assert asyncio.run(_report(operator=operator, pods=pods, pod=training[0], body=report)) == 200
    job = pods.kubectl.wait_for(
        "finetunejob",
        "router",
        lambda found: found["status"].get("trainerStatus", {}).get("progressPercentage") == 42,
        namespace=pods.namespace,
        timeout_s=HANGS_S,
        what="the report",
    )
    assert job["status"]["trainerStatus"]["metrics"] == [{"name": "loss", "value": "1.25"}]
    row = pods.kubectl.run("get", "ftj", "router", "-n", pods.namespace).splitlines()[1].split()
    assert row[:3] == ["router", "Training", "42"]
    pods.succeed(training, result=train_result())
    pods.of(stage="Evaluate")


def test_a_failed_attempt_is_tried_again_and_a_hopeless_one_is_not(operator: Replica, pods: ScriptedPods) -> None:
    create(pods)
    run_stage(pods, stage="Prepare", phase="Preparing", result=prepare_result())
    first = pods.of(stage="Train", attempt=1)
    pods.run(first)
    pods.fail(first, code=ExitCode.INTERNAL_ERROR)
    second = pods.of(stage="Train", attempt=2)
    pods.run(second)
    failure = {"stage": "Failure", "reason": "LossNotFinite", "message": "loss is nan at step 12"}
    pods.fail(second, code=ExitCode.BAD_CONFIGURATION, message=json.dumps(failure))
    job = wait_for_phase(pods, "Failed")
    assert job["status"]["restarts"]["failures"] == 1
    assert "loss is nan at step 12" in job["status"]["message"]
    assert conditions(job)["Stalled"][0] == "True"


def test_what_the_job_names_must_exist(operator: Replica, installed: ApiServer, namespace: str) -> None:
    installed.kubectl.create(job_manifest(namespace=namespace))
    job = installed.kubectl.wait_for(
        "finetunejob",
        "router",
        lambda found: "models" in found.get("status", {}).get("message", ""),
        namespace=namespace,
        timeout_s=HANGS_S,
        what="the missing claim",
    )
    assert job["status"]["phase"] == "Pending"
    assert not installed.kubectl.list("jobs", namespace=namespace)


def test_a_job_waits_for_its_endpoint_and_goes_on_when_it_comes(operator: Replica, pods: ScriptedPods) -> None:
    create(pods, endpointRef={"name": "later"})
    job = wait_for_message(pods, "finetunejob", "router", "there is no ModelEndpoint later here; waiting for it")
    assert (job["status"]["phase"], conditions(job)["Reconciling"]) == ("Pending", ("True", "EndpointNotFound"))
    pods.kubectl.create(endpoint(namespace=pods.namespace, name="later"))
    run_stage(pods, stage="Prepare", phase="Preparing", result=prepare_result())


def test_a_job_whose_endpoint_does_not_come_ends(installed: ApiServer, pods: ScriptedPods, tmp_path: Path) -> None:
    with replicas(installed, tmp_path, "one", environment={"FINETUNE_REFERENCE_DEADLINE_SECONDS": "2"}):
        create(pods, endpointRef={"name": "never"})
        job = wait_for_phase(pods, "Failed")
    said = "spec.endpointRef: there is no ModelEndpoint never here; it did not come within 2 s: create it, then create"
    assert said in job["status"]["message"]
    assert conditions(job)["Stalled"] == ("True", "EndpointNotFound")
    assert not pods.kubectl.list("jobs", namespace=pods.namespace)


def test_an_endpoint_that_names_a_missing_version_says_so(
    installed: ApiServer, pods: ScriptedPods, tmp_path: Path
) -> None:
    manifest = endpoint(namespace=pods.namespace)
    manifest["spec"]["version"] = "nothing"
    with replicas(installed, tmp_path, "one", environment={"FINETUNE_GATEWAY_IMAGE": "localhost/gateway:test"}):
        pods.kubectl.create(manifest)
        said = 'spec.version names "nothing", which does not exist; correct it, or leave it empty for the newest'
        found = wait_for_message(pods, "modelendpoint", "router", said)
        assert conditions(found)["Stalled"] == ("True", "VersionNotFound")
        pods.kubectl.patch("modelendpoint", "router", {"spec": {"version": ""}}, namespace=pods.namespace)
        found = pods.kubectl.wait_for(
            "modelendpoint",
            "router",
            lambda found: "VersionNotFound" not in json.dumps(found["status"]),
            namespace=pods.namespace,
            timeout_s=HANGS_S,
            what="the end of it",
        )
        assert conditions(found).get("Stalled", ("False", ""))[0] == "False"
        assert found["status"]["phase"] == "Empty"


@pytest.mark.parametrize("stage", ["Prepare", "Train", "Evaluate"])
def test_another_leader_goes_on_where_the_dead_one_was(
    installed: ApiServer, pods: ScriptedPods, tmp_path: Path, stage: str
) -> None:
    results = {"Prepare": prepare_result(), "Train": train_result(), "Evaluate": evaluate_result()}
    with replicas(installed, tmp_path, "one", "two") as (leader, standby):
        create(pods)
        for name, result in results.items():
            names = pods.of(stage=name)
            pods.run(names)
            if name == stage:
                leader.signal(signal.SIGKILL)
            pods.succeed(names, result=result)
        wait_for_phase(pods, "Succeeded")
        assert standby.leads
        jobs = pods.kubectl.list("jobs", namespace=pods.namespace, selector="finetune.dev/job=router")
        assert sorted(job["metadata"]["name"] for job in jobs) == [
            "router-evaluate-1",
            "router-prepare-1",
            "router-train-1",
        ]
        assert len(pods.kubectl.list("modelversions", namespace=pods.namespace)) == 1


def test_an_apiserver_that_was_away_for_a_while(installed: ApiServer, pods: ScriptedPods, tmp_path: Path) -> None:
    with replicas(installed, tmp_path, "one") as (operator,):
        create(pods)
        run_stage(pods, stage="Prepare", phase="Preparing", result=prepare_result())
        training = pods.of(stage="Train")
        pods.run(training)
        wait_for_phase(pods, "Training")
        installed.stop_apiserver()
        try:
            seconds_until(lambda: not operator.leads, what="the end of the leadership")
            assert operator.metric('finetune_jobs{phase="Training"}') == 0, "it shows what it no longer knows"
        finally:
            installed.start_apiserver()
        pods.succeed(training, result=train_result())
        run_stage(pods, stage="Evaluate", phase="Evaluating", result=evaluate_result())
        job = wait_for_phase(pods, "Succeeded")
        assert job["status"]["stages"][1]["attempt"] == 1
        assert operator.process.poll() is None


def test_some_namespaces_only(installed: ApiServer, pods: ScriptedPods, namespace: str, tmp_path: Path) -> None:
    """With a RoleBinding in the namespace, and no right anywhere else."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-operator"}
    subject = {"kind": "ServiceAccount", "name": "finetune-operator", "namespace": NAMESPACE}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "finetune-operator"},
        "roleRef": role,
        "subjects": [subject],
    }
    installed.kubectl.create(binding, namespace=namespace)
    installed.kubectl.delete("clusterrolebinding", "finetune-operator")
    try:
        with replicas(installed, tmp_path, "one", environment={"FINETUNE_NAMESPACES": namespace}) as (operator,):
            create(pods)
            run_stage(pods, stage="Prepare", phase="Preparing", result=prepare_result())
            run_stage(pods, stage="Train", phase="Training", result=train_result())
            assert not operator.said("is forbidden: User")
    finally:
        installed.kubectl.apply(Path("manifests/rbac"))


# As a mesh does (a container before ours, with a volume of its own) and as OpenShift's admission does (its own ids).
INJECTED = """[
    JSONPatch{op: "add", path: "/spec/containers/0", value: Object.spec.containers{
        name: "istio-proxy", image: "localhost/proxy:1"}},
    JSONPatch{op: "add", path: "/spec/volumes/-", value: Object.spec.volumes{
        name: "istio-envoy", emptyDir: Object.spec.volumes.emptyDir{}}},
    JSONPatch{op: "add", path: "/spec/securityContext/runAsUser", value: 1000650000},
    JSONPatch{op: "add", path: "/spec/securityContext/fsGroup", value: 1000650000}
]"""


@contextmanager
def policy(pods: ScriptedPods, kind: str, *, rule: Object, spec: Object, binding: Object) -> Iterator[str]:
    """An admission policy for this namespace alone; gives its name."""
    api, name = "admissionregistration.k8s.io/v1", f"{pods.namespace}-{kind.lower()}"
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": pods.namespace}}}
    rules = {"resourceRules": [{"apiVersions": ["v1"], "operations": ["CREATE"], **rule}], **here}
    made = {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": {"matchConstraints": rules, **spec}}
    bound = {"apiVersion": api, "kind": f"{kind}Binding", "metadata": {"name": name}}
    pods.kubectl.create([made, {**bound, "spec": {"policyName": name, **binding}}])
    try:
        yield name
    finally:
        pods.kubectl.delete(f"{kind.lower()}binding", name)
        pods.kubectl.delete(kind.lower(), name)


def test_what_others_put_into_the_pods_changes_nothing(operator: Replica, pods: ScriptedPods) -> None:
    """A container that comes first and never ends, a volume, other ids: the run is judged by its own container."""
    change = {"patchType": "JSONPatch", "jsonPatch": {"expression": INJECTED}}
    spec = {"failurePolicy": "Fail", "reinvocationPolicy": "Never", "mutations": [change]}
    rule = {"apiGroups": [""], "resources": ["pods"]}
    with policy(pods, "MutatingAdmissionPolicy", rule=rule, spec=spec, binding={}):
        trial = ("run", "x", "--image=x", "--dry-run=server", "-n", pods.namespace, "-o", "json")
        in_force = lambda: "istio-proxy" in pods.kubectl.run(*trial)  # noqa: E731 - a probe
        wait_until(in_force, what="the policy to come into force")
        create(pods)
        for stage, phase, result in (
            ("Prepare", "Preparing", prepare_result()),
            ("Train", "Training", train_result()),
            ("Evaluate", "Evaluating", evaluate_result()),
        ):
            (name,) = pods.of(stage=stage)
            spec = pods.kubectl.get("pod", name, namespace=pods.namespace)["spec"]
            assert [each["name"] for each in spec["containers"]] == ["istio-proxy", "trainer"]
            assert spec["securityContext"]["runAsUser"] == 1000650000
            pods.run([name])
            wait_for_phase(pods, phase)
            pods.succeed_beside([name], sidecar="istio-proxy", result=result)
        job = wait_for_phase(pods, "Succeeded")
        assert "restarts" not in job["status"]


def test_a_policy_that_refuses_the_job_is_named_with_what_would_let_it_in(
    operator: Replica, pods: ScriptedPods
) -> None:
    spec = {"failurePolicy": "Fail", "validations": [{"expression": "false", "message": "no jobs on Sundays"}]}
    rule = {"apiGroups": ["batch"], "resources": ["jobs"]}
    binding = {"validationActions": ["Deny"]}
    with policy(pods, "ValidatingAdmissionPolicy", rule=rule, spec=spec, binding=binding) as name:
        trial = ("create", "job", "x", "--image=x", "--dry-run=server", "-n", pods.namespace)

        def refused() -> bool:
            try:
                pods.kubectl.run(*trial)
            except KubectlError as error:
                return "no jobs on Sundays" in str(error)
            return False

        wait_until(refused, what="the policy to come into force")
        create(pods)
        job = wait_for_message(pods, "finetunejob", "router", "no jobs on Sundays")
        assert conditions(job)["Stalled"] == ("True", "ChildRefused")
        assert "Job router-prepare-1: " in job["status"]["message"]
        following = job["status"]["next"]
        assert following["waitsFor"][0].startswith(f"ValidatingAdmissionPolicy {name} to let it in")
        assert following["then"] == ["it is asked again by itself, at least every two minutes"]
    pods.of(stage="Prepare")  # within a minute


async def _report(*, operator: Replica, pods: ScriptedPods, pod: str, body: Object) -> int:
    """What the trainer in a pod does, with what the pod was given."""
    spec = pods.kubectl.get("pod", pod, namespace=pods.namespace)["spec"]
    variables = {entry["name"]: entry.get("value", "") for entry in spec["containers"][0]["env"]}
    url = variables["KUBEFLOW_TRAINER_SERVER_URL"]
    name = f"finetune-door.{NAMESPACE}.svc"
    assert url == f"https://{name}{progress_path(namespace=pods.namespace, job='router')}"
    orders = pods.kubectl.get("configmap", "router-train-1", namespace=pods.namespace)
    account = spec.get("serviceAccountName", "default")
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}", f"--audience={TOKEN_AUDIENCE}"]
    token = pods.kubectl.run("create", "token", account, "-n", pods.namespace, *bound).strip()
    trust = ssl.create_default_context(cadata=orders["data"]["ca.crt"])
    here = url.replace(f"https://{name}", f"https://127.0.0.1:{operator.door_port}")
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            here, json=body, ssl=trust, server_hostname=name, headers={"Authorization": f"Bearer {token}"}
        ) as answer,
    ):
        return answer.status


def _forge(operator: Replica, pods: ScriptedPods, real: str) -> None:
    """Somebody's pod with all labels of a real one, which says that the stage is over: looked at, and not believed."""
    looks = 'finetune_reconcile_duration_seconds_count{kind="FineTuneJob"}'
    before = operator.metric(looks)
    metadata = pods.kubectl.get("pod", real, namespace=pods.namespace)["metadata"]
    labels = {key: value for key, value in metadata["labels"].items() if key.startswith("finetune.dev/")}
    owner = metadata["ownerReferences"][0] | {"controller": False}
    spec = {"containers": [{"name": "trainer", "image": "localhost/none"}]}
    forged = {"name": "forged", "labels": labels, "ownerReferences": [owner]}
    pods.kubectl.create({"apiVersion": "v1", "kind": "Pod", "metadata": forged, "spec": spec}, namespace=pods.namespace)
    pods.succeed(["forged"], result=train_result())
    wait_until(lambda: operator.metric(looks) >= before + 2, what="two looks")
    job = pods.kubectl.get("finetunejob", "router", namespace=pods.namespace)
    assert [stage["state"] for stage in job["status"]["stages"]] == ["Complete", "Running"]
    pods.kubectl.delete("pod", "forged", namespace=pods.namespace)


def _wait_for_succeeded(operator: Replica, pods: ScriptedPods) -> None:
    """Wait until its metric counts the jobs that there are, those in other tests' namespaces on their way out too."""

    def as_many() -> bool:
        phases = [job.get("status", {}).get("phase") for job in pods.kubectl.list("finetunejobs")]
        return operator.metric('finetune_jobs{phase="Succeeded"}') == phases.count("Succeeded")

    wait_until(as_many, what="as many succeeded jobs as there are", explain=lambda: operator.get("/metrics")[1])
