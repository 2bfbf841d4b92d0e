"""A real Kubernetes cluster with nodes, in namespaces of its own."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from tests.harness import audit, tools
from tests.harness.controlplane import ControlPlane
from tests.harness.errors import HarnessError
from tests.harness.guard import Guard, record_cgroup, remove_environment
from tests.harness.images import Images
from tests.harness.kubectl import Object
from tests.harness.machine import Machine
from tests.harness.node import NODE_NETWORK, Node, set_link
from tests.harness.processes import Daemon
from tests.harness.store import locked
from tests.harness.volumes import claim, spare_volumes, volume
from tests.harness.waiting import wait_until
from tests.patience import HANGS_S

CLUSTERS = Path(os.environ.get("FINETUNE_CLUSTERS", "/var/lib/finetune-operator"))
"""State of the clusters. A short path: sockets lie below it, whose paths have at most 107 characters."""
_GRACE_PERIOD_S = 12
_CONTROLLER_OPTIONS = (f"--node-monitor-grace-period={_GRACE_PERIOD_S}s", "--node-monitor-period=1s")
_DNS_HEALTH = "127.0.0.1:8181"


@dataclass(frozen=True, kw_only=True)
class Cluster(ControlPlane):
    """A control plane with nodes. The first node's machine carries the control plane; break the others."""

    name: str
    node_count: int
    images: Images

    @classmethod
    @contextmanager
    def running(cls, *, images: Images, nodes: int = 2) -> Iterator[Cluster]:
        """A fresh cluster, which is gone afterwards, also when the test run is killed."""
        name = f"test-{uuid4().hex[:6]}"
        cluster = cls._describe(name=name, nodes=nodes, images=images)
        cluster.folder.mkdir(parents=True)
        guard = Guard.start(cluster.folder)
        try:
            cluster._up()
            yield cluster
        finally:
            guard.remove()

    @classmethod
    def up(cls, *, name: str, images: Images, nodes: int = 2) -> Cluster:
        """Start a cluster that stays until `down`; any process can `open` it. An unfinished start is removed."""
        with locked(f"cluster-{name}"):
            cluster = cls._describe(name=name, nodes=nodes, images=images)
            if (cluster.folder / "cluster.json").exists():
                raise HarnessError(f"cluster {name} exists already; use it, or remove it with: down --name {name}")
            cls._remove(name)
            cluster.folder.mkdir(parents=True)
            try:
                cluster._up()
            except BaseException:
                cls._remove(name)
                raise
            return cluster

    @classmethod
    def open(cls, name: str) -> Cluster:
        """A cluster that some process started; `HarnessError` when there is none."""
        try:
            state = json.loads((CLUSTERS / name / "cluster.json").read_text())
        except FileNotFoundError as error:
            raise HarnessError(f"there is no cluster {name}; start it with: up --name {name}") from error
        return cls._describe(name=name, nodes=state["nodes"], images=Images(**state["images"]))

    @classmethod
    def down(cls, name: str) -> None:
        """Remove a cluster, whatever state it is in; nothing happens when there is none."""
        with locked(f"cluster-{name}"):
            cls._remove(name)

    @classmethod
    def names(cls) -> list[str]:
        """The clusters whose state is on this machine."""
        return sorted(folder.name for folder in CLUSTERS.iterdir()) if CLUSTERS.exists() else []

    @classmethod
    def _remove(cls, name: str) -> None:
        if (CLUSTERS / name).exists():
            remove_environment(CLUSTERS / name)

    @classmethod
    def _describe(cls, *, name: str, nodes: int, images: Images) -> Cluster:
        folder = CLUSTERS / name
        control = Machine(name="node1", folder=folder)
        return cls(
            name=name,
            node_count=nodes,
            images=images,
            folder=folder,
            programs=tools.programs(tools.CLUSTER_PROGRAMS),
            address=f"{NODE_NETWORK}.1",
            port=6443,
            etcd_ports=(2379, 2380),
            controller_options=_CONTROLLER_OPTIONS,
            apiserver_options=audit.options(folder),
            network=control.network,
            daemon_prefix=lambda: control.prefix() if control.is_on() else [],
            kubectl_prefix=control.network_prefix,
        )

    @property
    def nodes(self) -> dict[str, Node]:
        """By name."""
        nodes = [
            Node(
                index=index,
                count=self.node_count,
                cluster=self.folder,
                cgroup=self._cgroup,
                server=self.server,
                authority=self.authority,
                programs=self.programs,
            )
            for index in range(1, self.node_count + 1)
        ]
        return {node.name: node for node in nodes}

    @property
    def control(self) -> Machine:
        """The machine of the control plane."""
        return self.nodes["node1"].machine

    @property
    def coredns(self) -> Daemon:
        return self.control.daemon("coredns", self.programs["coredns"], f"-conf={self.folder / 'Corefile'}")

    def inside(self) -> AbstractContextManager[None]:
        """The calling thread, and what it starts, is in the network of `node1` and reaches all of the cluster."""
        return self.control.network()

    def run_inside(self, command: Sequence[str], *, timeout_s: float = HANGS_S) -> str:
        """Run a command there, with KUBECONFIG and PATH set, and return its output."""
        run = subprocess.run(
            [*self.control.network_prefix(), *command],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if run.returncode != 0:
            raise HarnessError(f"{' '.join(command)} ended with {run.returncode}: {run.stdout}{run.stderr}")
        return run.stdout

    def environment(self) -> dict[str, str]:
        """Variables for a command in the cluster: its kubeconfig, and kubectl and helm (once built) on the PATH."""
        names = ["kubectl", *(["helm"] if tools.is_built("helm") else [])]
        folders = [*(str(tools.program(name).parent) for name in names), os.environ.get("PATH", os.defpath)]
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": os.pathsep.join(folders)}

    def stop_node(self, name: str) -> None:
        """Cut the power of a node: its kubelet, containers and network are gone at once."""
        self._breakable(name).machine.cut_power()

    def start_node(self, name: str) -> None:
        """Boot it again, with its disk as it was, and wait until it is Ready."""
        node = self._breakable(name)
        node.boot(control=self.control)
        node.start_runtime(self.images.all())
        node.start_kubelet()
        self.wait_ready(name)

    def partition_node(self, name: str) -> None:
        """Unplug a node's network; its pods run on."""
        set_link(self.control, self._breakable(name).link, up=False)

    def heal_node(self, name: str) -> None:
        """Plug it in again and wait until it is Ready."""
        set_link(self.control, self._breakable(name).link, up=True)
        self.wait_ready(name)

    def wait_ready(self, name: str) -> None:
        """Wait until the node is Ready; the error has its logs' tails."""
        self._wait_node(name, lambda status: status == "True", what="Ready")

    def wait_not_ready(self, name: str) -> None:
        """Wait until the control plane has noticed that the node is gone, about 12 s after its end."""
        self._wait_node(name, lambda status: status in ("False", "Unknown"), what="not Ready")

    def with_images(self, images: Images) -> Cluster:
        """Put freshly built images on all nodes that are on; what is returned names them as its `images`."""
        for node in self.nodes.values():
            if node.machine.is_on():
                node.load(images.all())
        changed = replace(self, images=images)
        changed._save()
        return changed

    def service_address(self, name: str, *, namespace: str) -> str:
        """The ClusterIP of a Service."""
        return str(self.kubectl.get("service", name, namespace=namespace)["spec"]["clusterIP"])

    def volume(
        self,
        name: str,
        *,
        namespace: str,
        access_modes: Sequence[str] = ("ReadWriteMany",),
        size: str = "10Gi",
    ) -> Path:
        """A bound claim `name`; returns its folder, which all nodes see and every user may write."""
        folder = self.folder / "volumes" / f"{namespace}-{name}"
        claimed = (namespace, name)
        self.kubectl.create(
            [
                volume(name=folder.name, folder=folder, access_modes=access_modes, size=size, claimed=claimed),
                claim(name=name, namespace=namespace, volume=folder.name, access_modes=access_modes, size=size),
            ]
        )
        self.kubectl.wait_for(
            "persistentvolumeclaim",
            name,
            lambda found: found.get("status", {}).get("phase") == "Bound",
            namespace=namespace,
            what="phase Bound",
        )
        return folder

    @property
    def _cgroup(self) -> str:
        return f"finetune-{self.name}"

    def _up(self) -> None:
        """Start everything, as much at once as depends on nothing else, and wait until the cluster works."""
        record_cgroup(self.folder, self._cgroup)
        self.prepare()
        audit.prepare(self.folder)
        nodes = list(self.nodes.values())
        for node in nodes:
            node.create(pause_image=self.images.pause)
            node.boot(control=self.control)
        with ThreadPoolExecutor() as pool:
            api = pool.submit(self.start)
            runtimes = [pool.submit(node.start_runtime, self.images.all()) for node in nodes]
            api.result()
            self.controllers.start()
            self.scheduler.start()
            self._start_dns()
            for node, runtime in zip(nodes, runtimes, strict=True):
                runtime.result()
                node.start_kubelet()
            tasks: list[Callable[[], object]] = [
                partial(self.kubectl.apply, spare_volumes(self.folder / "volumes")),
                self._wait_dns,
                self.wait_controllers,
                *(partial(self.wait_ready, node.name) for node in nodes),
            ]
            for waiting in [pool.submit(task) for task in tasks]:
                waiting.result()
        self._save()

    def _save(self) -> None:
        state = {"nodes": self.node_count, "images": asdict(self.images)}
        (self.folder / "cluster.json").write_text(json.dumps(state, indent=1))

    def _start_dns(self) -> None:
        (self.folder / "Corefile").write_text(
            f".:53 {{\n bind {self.address}\n errors\n ready {_DNS_HEALTH}\n"
            f" kubernetes cluster.local in-addr.arpa {{\n  kubeconfig {self.kubeconfig}\n  ttl 1\n }}\n}}\n"
        )
        self.coredns.start()

    def _wait_dns(self) -> None:
        def probe() -> bool:
            self.coredns.require_alive()
            with self.inside():
                try:
                    with urllib.request.urlopen(f"http://{_DNS_HEALTH}/ready", timeout=2) as answer:
                        return bool(answer.status == 200)
                except OSError:
                    return False

        wait_until(probe, what="CoreDNS", explain=self.coredns.log_tail)

    def _wait_node(self, name: str, accept: Callable[[str], bool], *, what: str) -> None:
        def probe() -> bool:
            found = self.kubectl.find("node", name)
            return found is not None and accept(_readiness(found))

        wait_until(
            probe,
            what=f"{name} {what}",
            interval_s=0.25,
            explain=self.nodes[name].log_tails,
        )

    def _breakable(self, name: str) -> Node:
        if name == "node1":
            raise HarnessError("node1 carries the control plane and the tests' way in; break another node")
        return self.nodes[name]


def _readiness(node: Object) -> str:
    for condition in node.get("status", {}).get("conditions", ()):
        if condition["type"] == "Ready":
            return str(condition["status"])
    return ""
