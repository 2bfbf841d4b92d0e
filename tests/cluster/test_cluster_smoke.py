"""The cluster itself: what the other tests of this layer rely on."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from dataclasses import asdict
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from tests.harness import Cluster, HarnessError, KubectlError, Object, wait_until
from tests.harness.cluster import CLUSTERS
from tests.harness.store import ROOT
from tests.patience import HANGS_S

RESTRICTED_POD = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

ALL_REDUCE = """
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
print("sum", int(total.item()), "of", dist.get_world_size())
open("/dev/termination-log", "w").write(f"sum {int(total.item())}")
dist.destroy_process_group()
"""


def pod_spec(image: str, *command: str, **fields: Any) -> Object:
    container = {
        "name": "main",
        "image": image,
        "command": list(command),
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "securityContext": RESTRICTED_POD,
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        **fields,
    }


def pod(name: str, spec: Object) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def in_phase(*phases: str) -> Any:
    return lambda found: found.get("status", {}).get("phase") in phases


def is_ready(found: Object) -> bool:
    conditions = found.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def test_two_nodes_are_ready(cluster: Cluster) -> None:
    nodes = cluster.kubectl.list("nodes")
    assert [node["metadata"]["name"] for node in nodes] == ["node1", "node2"]
    assert all(is_ready(node) for node in nodes)


def test_a_privileged_pod_is_refused(cluster: Cluster, namespace: str) -> None:
    spec = pod_spec(cluster.images.busybox, "true")
    spec["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(KubectlError, match='violates PodSecurity "restricted'):
        cluster.kubectl.create(pod("privileged", spec), namespace=namespace)


def test_two_pods_train_together(cluster: Cluster, namespace: str) -> None:
    run = (
        "torchrun --nnodes=2 --nproc-per-node=1 --node-rank=$JOB_COMPLETION_INDEX --rdzv-backend=static"
        " --rdzv-endpoint=reduce-0.reduce:29500 --local-addr=reduce-$JOB_COMPLETION_INDEX.reduce /tmp/program.py"
    )
    script = f"cat > /tmp/program.py <<'EOF'\n{ALL_REDUCE}\nEOF\n{run}"
    spec = pod_spec(
        cluster.images.trainer,
        "sh",
        "-c",
        script,
        subdomain="reduce",
        # One on each node, so that their traffic crosses between nodes.
        topologySpreadConstraints=[
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "reduce"}},
            }
        ],
    )
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "reduce"},
        "spec": {
            "completionMode": "Indexed",
            "completions": 2,
            "parallelism": 2,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"app": "reduce"}}, "spec": spec},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "reduce"},
        "spec": {"clusterIP": "None", "selector": {"app": "reduce"}, "publishNotReadyAddresses": True},
    }
    cluster.kubectl.create([service, job], namespace=namespace)
    ended = cluster.kubectl.wait_for(
        "job",
        "reduce",
        lambda found: {"Complete", "Failed"} & {c["type"] for c in found.get("status", {}).get("conditions", ())},
        namespace=namespace,
        timeout_s=HANGS_S,
    )
    pods = cluster.kubectl.list("pods", namespace=namespace, selector="app=reduce")
    logs = {
        found["metadata"]["name"]: cluster.kubectl.logs(found["metadata"]["name"], namespace=namespace)
        for found in pods
    }
    assert ended["status"].get("succeeded") == 2, logs
    assert {found["spec"]["nodeName"] for found in pods} == {"node1", "node2"}
    assert all("sum 3 of 2" in text for text in logs.values()), logs
    for found in pods:
        assert found["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "sum 3"


def test_a_service_is_reached_from_pods_and_from_tests(cluster: Cluster, namespace: str) -> None:
    serve = "mkdir /tmp/www && echo hello > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www"
    spec = pod_spec(cluster.images.busybox, "sh", "-c", serve, nodeName="node2")
    spec["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    client = pod_spec(cluster.images.busybox, "sleep", "600", nodeName="node1")
    cluster.kubectl.create([service, pod("web", spec), pod("client", client)], namespace=namespace)
    for name in ("web", "client"):
        cluster.kubectl.wait_for("pod", name, is_ready, namespace=namespace)

    def from_pod() -> str:
        try:
            return cluster.kubectl.execute("client", "wget", "-qO-", f"http://web.{namespace}.svc", namespace=namespace)
        except KubectlError:
            return ""  # kube-proxy and CoreDNS follow the endpoints a moment later

    assert wait_until(from_pod, what="an answer through the Service's name") == "hello\n"
    address = cluster.service_address("web", namespace=namespace)
    with urllib.request.urlopen(f"http://{address}", timeout=HANGS_S) as answer:
        assert answer.read() == b"hello\n"


def test_a_claim_is_shared_by_nodes_and_the_test(cluster: Cluster, namespace: str) -> None:
    folder = cluster.volume("shared", namespace=namespace)
    (folder / "from-test").write_text("seen")
    for node in ("node1", "node2"):
        spec = pod_spec(cluster.images.busybox, "sh", "-c", f"cp /data/from-test /data/{node}", nodeName=node)
        spec["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": "shared"}})
        spec["containers"][0]["volumeMounts"].append({"name": "data", "mountPath": "/data"})
        cluster.kubectl.create(pod(node, spec), namespace=namespace)
    for node in ("node1", "node2"):
        cluster.kubectl.wait_for("pod", node, in_phase("Succeeded"), namespace=namespace)
        assert (folder / node).read_text() == "seen"


def test_a_container_over_its_memory_limit_is_killed(cluster: Cluster, namespace: str) -> None:
    spec = pod_spec(cluster.images.busybox, "tail", "-c", "200000000", "/dev/zero")  # holds what it will print
    spec["containers"][0]["resources"] = {"limits": {"memory": "32Mi"}}
    cluster.kubectl.create(pod("greedy", spec), namespace=namespace)
    ended = cluster.kubectl.wait_for("pod", "greedy", in_phase("Failed"), namespace=namespace)
    assert ended["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"


def test_a_node_without_power_is_noticed_and_comes_back(cluster: Cluster, namespace: str) -> None:
    sleeper = pod_spec(cluster.images.busybox, "sleep", "600", nodeName="node2", restartPolicy="Always")
    cluster.kubectl.create(pod("sleeper", sleeper), namespace=namespace)
    cluster.kubectl.wait_for("pod", "sleeper", is_ready, namespace=namespace)
    cluster.stop_node("node2")
    cluster.wait_not_ready("node2")
    cluster.start_node("node2")
    back = cluster.kubectl.wait_for(
        "pod",
        "sleeper",
        lambda found: is_ready(found) and found["status"]["containerStatuses"][0]["restartCount"] > 0,
        namespace=namespace,
        what="a restarted container",
    )
    assert back["spec"]["nodeName"] == "node2"


def test_a_partitioned_node_keeps_its_pods(cluster: Cluster, namespace: str) -> None:
    sleeper = pod_spec(cluster.images.busybox, "sleep", "600", nodeName="node2")
    cluster.kubectl.create(pod("sleeper", sleeper), namespace=namespace)
    cluster.kubectl.wait_for("pod", "sleeper", is_ready, namespace=namespace)
    cluster.partition_node("node2")
    cluster.wait_not_ready("node2")
    cluster.heal_node("node2")
    found = cluster.kubectl.wait_for("pod", "sleeper", is_ready, namespace=namespace)
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0


def test_the_apiserver_goes_and_comes_back(cluster: Cluster) -> None:
    cluster.stop_apiserver()
    with pytest.raises(KubectlError, match="refused"):
        cluster.kubectl.list("nodes")
    cluster.start_apiserver()
    for name in cluster.nodes:
        cluster.wait_ready(name)


def test_the_node_of_the_control_plane_is_not_broken(cluster: Cluster) -> None:
    with pytest.raises(HarnessError, match="node1 carries the control plane"):
        cluster.stop_node("node1")


@pytest.mark.parametrize("end", ["down", "killed"])
def test_nothing_remains(cluster: Cluster, end: str) -> None:
    """A second cluster, with a running pod, goes without a trace: by `down`, and when its owner is killed."""
    program = dedent(
        """
        import json, sys
        from tests.cluster.test_cluster_smoke import pod, pod_spec, is_ready
        from tests.harness import Cluster
        from tests.harness.images import Images

        with Cluster.running(images=Images(**json.loads(sys.argv[1])), nodes=2) as cluster:
            for node in cluster.nodes:
                spec = pod_spec(cluster.images.busybox, "sleep", "600", nodeName=node)
                cluster.kubectl.create(pod(node, spec), namespace="default")
            for node in cluster.nodes:
                cluster.kubectl.wait_for("pod", node, is_ready, namespace="default")
            print(cluster.folder, flush=True)
            sys.stdin.read(1)
        """
    )
    command = [sys.executable, "-c", program, json.dumps(asdict(cluster.images))]
    owner = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert folder.parent == CLUSTERS
    assert len(_traces(folder)) > 10
    if end == "killed":
        owner.kill()
    owner.stdin.close()
    owner.wait(timeout=HANGS_S)
    owner.stdout.close()
    wait_until(
        lambda: not folder.exists() and not _traces(folder),
        what=f"removal of {folder}",
        explain=lambda: f"still there: {_traces(folder)}",
    )


def _traces(folder: Path) -> list[str]:
    """Processes, mounts and cgroups of the cluster whose state is in `folder`."""
    name = folder.name
    processes = [
        f"process {path.parent.name}"
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(folder).encode() in _content(path) or name.encode() in _content(path.with_name("cgroup"))
    ]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    cgroups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/*{name}*")]
    return processes + mounts + cgroups


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
