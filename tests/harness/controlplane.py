"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler of an environment, on the host or on a machine."""

from __future__ import annotations

import http.client
import signal
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from tests.harness.kubectl import Kubectl
from tests.harness.pki import Authority
from tests.harness.processes import Daemon
from tests.harness.waiting import wait_until

ADMIN = "finetune-test-admin"
CLUSTER_DNS_NAME = "kubernetes.default.svc"
SERVICE_RANGE = "10.96.0.0/16"


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """The control plane whose state lies in `folder`: a description that any process may hold, all state is on disk."""

    folder: Path
    programs: Mapping[str, Path]
    address: str
    port: int
    etcd_ports: tuple[int, int]
    """Client and peer port, on the loopback address."""
    controller_options: Sequence[str] = ()
    apiserver_options: Sequence[str] = ()
    network: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    """Puts the calling thread where `address` is reachable."""
    daemon_prefix: Callable[[], Sequence[str]] = field(default=tuple)
    kubectl_prefix: Callable[[], Sequence[str]] = field(default=tuple)

    @property
    def server(self) -> str:
        """The apiserver's address."""
        return f"https://{self.address}:{self.port}"

    @property
    def authority(self) -> Authority:
        """The certificate authority."""
        return Authority(folder=self.folder / "pki")

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of a cluster administrator (system:masters)."""
        return self.folder / "admin.kubeconfig"

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as the administrator."""
        return self._kubectl(self.kubeconfig)

    @property
    def etcd(self) -> Daemon:
        client, peer = (f"http://127.0.0.1:{port}" for port in self.etcd_ports)
        return self._daemon(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # a test's data need not survive the machine
            "--log-level=error",
        )

    @property
    def apiserver(self) -> Daemon:
        pki = self.folder / "pki"
        return self._daemon(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self.etcd_ports[0]}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.port}",
            # A loopback address cannot be an endpoint of the Service `kubernetes`.
            *(["--endpoint-reconciler-type=none"] if self.address.startswith("127.") else []),
            f"--cert-dir={pki}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={self.authority.certificate}",
            "--authorization-mode=Node,RBAC",
            # OpenShift has the second one: who makes children needs the right to their owners' finalizers.
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--service-account-issuer=https://{CLUSTER_DNS_NAME}",
            f"--service-account-key-file={self.authority.service_account_key}",
            f"--service-account-signing-key-file={self.authority.service_account_key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            "--allow-privileged",
            *self.apiserver_options,
        )

    @property
    def controllers(self) -> Daemon:
        return self._daemon(
            "kube-controller-manager",
            f"--kubeconfig={self._component('system:kube-controller-manager')}",
            f"--cert-dir={self.folder / 'pki'}",
            f"--service-account-private-key-file={self.authority.service_account_key}",
            f"--root-ca-file={self.authority.certificate}",
            "--use-service-account-credentials",
            "--kube-api-qps=500",  # the default delays the start by seconds
            "--kube-api-burst=1000",
            "--horizontal-pod-autoscaler-sync-period=2s",  # before it looks at a new one for the first time as well
            "--leader-elect=false",
            "--secure-port=0",
            *self.controller_options,
        )

    @property
    def scheduler(self) -> Daemon:
        return self._daemon(
            "kube-scheduler",
            f"--kubeconfig={self._component('system:kube-scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
        )

    def prepare(self) -> None:
        """Write keys, certificates and the administrator's kubeconfig."""
        authority = Authority.create(self.folder / "pki")
        names = ("kubernetes", "kubernetes.default", CLUSTER_DNS_NAME, f"{CLUSTER_DNS_NAME}.cluster.local", "localhost")
        authority.server(name="apiserver", alternatives=[self.address, "127.0.0.1", "10.96.0.1", *names])
        authority.write(name="kubelet-client", pair=authority.client(user="kube-apiserver", groups=["system:masters"]))
        authority.kubeconfig(self.kubeconfig, server=self.server, user=ADMIN, groups=["system:masters"])

    def start(self) -> None:
        """Start etcd and kube-apiserver and wait until it answers."""
        self.etcd.start()
        self.apiserver.start()  # it retries until etcd listens
        self.wait_answering()

    def start_apiserver(self) -> None:
        """Start kube-apiserver again after `stop_apiserver`: same address, same data."""
        self.apiserver.start()
        self.wait_answering()

    def stop_apiserver(self) -> None:
        """Kill kube-apiserver; its clients get connection errors."""
        self.apiserver.stop(number=signal.SIGKILL)

    def pause_apiserver(self) -> None:
        """Make it hang: connections stay open and nothing is answered."""
        self.apiserver.pause()

    def resume_apiserver(self) -> None:
        """Let it go on."""
        self.apiserver.resume()

    def start_controllers(self) -> None:
        """Start kube-controller-manager and wait until it works."""
        self.controllers.start()
        self.wait_controllers()

    def wait_controllers(self) -> None:
        """Wait until kube-controller-manager has made the default service account, without which no pod is admitted."""

        def probe() -> object:
            self.controllers.require_alive()
            return self.kubectl.find("serviceaccount", "default", namespace="default")

        wait_until(
            probe,
            what="the service account that kube-controller-manager makes",
            explain=self.controllers.log_tail,
        )

    def stop_controllers(self) -> None:
        """Stop kube-controller-manager."""
        self.controllers.stop(number=signal.SIGKILL)

    def wait_answering(self) -> None:
        """Wait until /readyz says ok; raises with the log's tail when the apiserver or etcd ends."""

        def probe() -> bool:
            for daemon in (self.etcd, self.apiserver):
                daemon.require_alive()
            with self.network():
                return self._is_ready()

        wait_until(probe, what=f"kube-apiserver at {self.server}", explain=self.apiserver.log_tail)

    def user(self, name: str, *, groups: Sequence[str] = ()) -> Kubectl:
        """kubectl as a new user: a client certificate with this name and groups; its rights come from RBAC alone."""
        path = self.folder / "users" / f"{name.replace(':', '-')}-{uuid4().hex[:6]}.kubeconfig"
        return self._kubectl(self.authority.kubeconfig(path, server=self.server, user=name, groups=groups))

    def service_account_token(self, name: str, *, namespace: str, audience: str = "") -> str:
        """A token of a service account by TokenRequest."""
        return self.kubectl.service_account_token(name, namespace=namespace, audience=audience)

    @contextmanager
    def namespace_named(self, prefix: str = "test", *, labels: Mapping[str, str] | None = None) -> Iterator[str]:
        """A fresh namespace `<prefix>-<random>`; deleted afterwards without waiting for its end."""
        name = f"{prefix}-{uuid4().hex[:8]}"
        self.kubectl.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}
        )
        try:
            yield name
        finally:
            self.kubectl.delete("namespace", name, wait=False)

    def _component(self, user: str) -> Path:
        path = self.folder / f"{user.removeprefix('system:')}.kubeconfig"
        if not path.exists():
            self.authority.kubeconfig(path, server=self.server, user=user)
        return path

    def _kubectl(self, kubeconfig: Path) -> Kubectl:
        return Kubectl(program=self.programs["kubectl"], kubeconfig=kubeconfig, prefix=self.kubectl_prefix)

    def _daemon(self, name: str, *options: str) -> Daemon:
        return Daemon(
            name=name, command=[self.programs[name], *options], folder=self.folder, prefix=self.daemon_prefix()
        )

    def _is_ready(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        connection = http.client.HTTPSConnection(self.address, self.port, timeout=2, context=context)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
