"""A node: a machine with containerd, kubelet and kube-proxy. Power cuts, reboots and partitions are real ones."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.controlplane import SERVICE_RANGE
from tests.harness.errors import HarnessError
from tests.harness.linking import Containerd
from tests.harness.machine import Machine, make_cgroups, remove_cgroups
from tests.harness.pki import Authority
from tests.harness.processes import Daemon
from tests.harness.storage import Storage
from tests.harness.waiting import wait_until
from tests.patience import HANGS_S

NODE_NETWORK = "10.89.0"
POD_NETWORK = "10.244"
BRIDGE = "nodes"
_CNI_PROGRAMS = "/usr/lib/cni"
_HEARTBEAT_S = 2


@dataclass(frozen=True, kw_only=True)
class Node:
    """Node `index` (from 1) of a cluster; the first also carries the control plane and the bridge between them."""

    index: int
    count: int
    """Nodes of the cluster."""
    cluster: Path
    """The cluster's state folder."""
    cgroup: str
    """The cluster's cgroup."""
    server: str
    authority: Authority
    programs: Mapping[str, Path]

    @property
    def name(self) -> str:
        """node1, node2, ..."""
        return f"node{self.index}"

    @property
    def address(self) -> str:
        """On the network between the nodes."""
        return f"{NODE_NETWORK}.{self.index}"

    @property
    def folder(self) -> Path:
        """What would be the node's disk."""
        return self.cluster / self.name

    @property
    def machine(self) -> Machine:
        """Its namespaces."""
        return Machine(name=self.name, folder=self.cluster)

    @property
    def containerd(self) -> Daemon:
        return self._daemon("containerd", "/usr/bin/containerd", f"--config={self.folder / 'containerd.toml'}")

    @property
    def kubelet(self) -> Daemon:
        return self._daemon(
            "kubelet",
            self.programs["kubelet"],
            f"--kubeconfig={self._kubeconfig('kubelet')}",
            f"--config={self.folder / 'kubelet.json'}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet' / 'pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )

    @property
    def proxy(self) -> Daemon:
        return self._daemon(
            "kube-proxy",
            self.programs["kube-proxy"],
            f"--kubeconfig={self._kubeconfig('kube-proxy')}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={POD_NETWORK}.0.0/16",
            f"--hostname-override={self.name}",
            "--conntrack-max-per-core=0",  # these belong to the host
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )

    def create(self, *, pause_image: str) -> None:
        """Write its configuration and credentials."""
        self.folder.mkdir(parents=True)
        (self.folder / "log").mkdir()
        (self.folder / "containerd.toml").write_text(self._containerd_config(pause_image))
        (self.folder / "kubelet.json").write_text(json.dumps(self._kubelet_config(), indent=1))
        (self.folder / "cni").mkdir()
        (self.folder / "cni" / "10-pods.conflist").write_text(json.dumps(self._cni_config(), indent=1))
        for user, groups in ((f"system:node:{self.name}", ["system:nodes"]), ("system:kube-proxy", [])):
            component = "kubelet" if groups else "kube-proxy"
            self.authority.kubeconfig(self._kubeconfig(component), server=self.server, user=user, groups=groups)

    def boot(self, *, control: Machine) -> None:
        """Switch its machine on and join it to the network of the others; `control` is the first node's machine."""
        self.machine.boot()
        # What containerd, runc and CNI keep outside of their folders is gone after a reboot, and never on the host.
        for command in (
            ("mount", "-t", "tmpfs", "tmpfs", "/run"),
            ("mkdir", "-p", "/run/netns", "/run/containerd", "/var/lib/cni"),
            ("mount", "-t", "tmpfs", "tmpfs", "/var/lib/cni"),
            ("mount", "--bind", str(self.folder / "log"), "/var/log"),
        ):
            self.machine.run(*command)
        self._join(control)
        remove_cgroups(f"{self.cgroup}/{self.name}")
        make_cgroups(f"{self.cgroup}/{self.name}")

    def start_runtime(self, images: Iterable[str]) -> None:
        """Start containerd and give it the images."""
        self.containerd.start()
        runtime = self._runtime()

        def listening() -> bool:
            self.containerd.require_alive()
            with suppress(HarnessError):
                return runtime.answers()
            return False

        wait_until(
            listening,
            what=f"containerd of {self.name}",
            explain=self.containerd.log_tail,
        )
        self.load(images)

    def load(self, images: Iterable[str]) -> None:
        """Put built images on the node."""
        storage = Storage.default()
        self._runtime().give(storage.image(reference) for reference in images)

    def start_kubelet(self) -> None:
        """Start kubelet and kube-proxy; the node becomes Ready within seconds."""
        self.kubelet.start()
        self.proxy.start()

    def log_tails(self) -> str:
        """The last lines of its components' logs."""
        return "\n".join(daemon.log_tail() for daemon in (self.kubelet, self.containerd, self.proxy))

    def _runtime(self) -> Containerd:
        return Containerd(socket=self.folder / "containerd.sock")

    def _daemon(self, name: str, *command: str | Path) -> Daemon:
        prefix = self.machine.prefix() if self.machine.is_on() else []
        return Daemon(name=f"{self.name}-{name}", command=command, folder=self.cluster, prefix=prefix)

    def _kubeconfig(self, component: str) -> Path:
        return self.folder / f"{component}.kubeconfig"

    def _join(self, control: Machine) -> None:
        """The first node owns the bridge; each other one hangs on it by a veth pair. Pods of other nodes are routed."""
        if self.index == 1:
            _ip(self.machine, f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up")
            device = BRIDGE
        else:
            device = "eth0"
            with suppress(HarnessError):  # what a power cut left; the kernel may not have removed it yet
                _ip(control, f"link del {self.link}")
            _ip(
                control,
                f"link add {self.link} type veth peer name {device} netns {self.machine.process().pid}",
                f"link set {self.link} master {BRIDGE} up",
            )
        others = [index for index in range(1, self.count + 1) if index != self.index]
        _ip(
            self.machine,
            f"address add {self.address}/24 dev {device}",
            f"link set {device} up",
            # Where these packets go is decided by kube-proxy; without a route they would not get that far.
            f"route add {SERVICE_RANGE} dev {device}",
            *(f"route add {POD_NETWORK}.{other}.0/24 via {NODE_NETWORK}.{other}" for other in others),
        )

    @property
    def link(self) -> str:
        """The device on the first node's bridge that leads here."""
        return f"to-{self.name}"

    def _containerd_config(self, pause_image: str) -> str:
        return f"""version = 2
root = "{self.folder}/containerd"
state = "/run/containerd/state"
[grpc]
  address = "{self._runtime().socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  restrict_oom_score_adj = true  # works without CAP_SYS_RESOURCE
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_CNI_PROGRAMS}"
    conf_dir = "{self.folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"""

    def _cni_config(self) -> dict[str, Any]:
        # ptp routes every packet through the node, so Services work without bridge netfilter.
        addresses = {
            "type": "host-local",
            "dataDir": "/run/pod-addresses",
            "ranges": [[{"subnet": f"{POD_NETWORK}.{self.index}.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}]}

    def _kubelet_config(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{self._runtime().socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}/{self.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "clusterDNS": [f"{NODE_NETWORK}.1"],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": f"{_HEARTBEAT_S}s",
            "nodeLeaseDurationSeconds": 4 * _HEARTBEAT_S,  # renewed four times as often
            "volumePluginDir": str(self.folder / "volume-plugins"),
        }


def _ip(machine: Machine, *commands: str) -> None:
    """Run `ip` commands in the machine's network, but with the host's process ids."""
    text = "\n".join(commands) + "\n"
    command = [*machine.network_prefix(), "ip", "-batch", "-"]
    run = subprocess.run(command, input=text, capture_output=True, text=True, timeout=HANGS_S, check=False)
    if run.returncode != 0:
        raise HarnessError(f"network of {machine.name}: {run.stderr.strip()}\n{text}")


def set_link(machine: Machine, device: str, *, up: bool) -> None:
    """Switch a network device on or off."""
    _ip(machine, f"link set {device} {'up' if up else 'down'}")
