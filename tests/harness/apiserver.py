"""An apiserver and its etcd on loopback ports, for tests that need the API but no nodes. No root needed."""

from __future__ import annotations

import random
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from tests.harness import tools
from tests.harness.controlplane import ControlPlane
from tests.harness.guard import Guard
from tests.harness.kubectl import Kubectl

_LOOPBACK = "127.0.0.1"
# Below the range of ephemeral ports: no client's outgoing connection takes a port between its choice and its use.
_PORTS = range(20000, 32000)


class ApiServer:
    """`with ApiServer() as apiserver: ...`: a fresh API that is gone afterwards, also when the test run is killed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="finetune-api-"))
        self._guard = Guard.start(self.folder)
        port, etcd_client, etcd_peer = _free_ports(3)
        self.control_plane = ControlPlane(
            folder=self.folder,
            programs=tools.programs(tools.API_PROGRAMS),
            address=_LOOPBACK,
            port=port,
            etcd_ports=(etcd_client, etcd_peer),
        )

    def __enter__(self) -> ApiServer:
        try:
            self.control_plane.prepare()
            self.control_plane.start()
        except BaseException:
            self._guard.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard.remove()

    @property
    def server(self) -> str:
        """Such as https://127.0.0.1:23456."""
        return self.control_plane.server

    @property
    def kubeconfig(self) -> Path:
        """Of a cluster administrator."""
        return self.control_plane.kubeconfig

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as the administrator."""
        return self.control_plane.kubectl

    def user(self, name: str, groups: Sequence[str] = ()) -> Kubectl:
        """See `ControlPlane.user`."""
        return self.control_plane.user(name, groups=groups)

    def service_account_token(self, name: str, *, namespace: str, audience: str = "") -> str:
        """See `ControlPlane.service_account_token`."""
        return self.control_plane.service_account_token(name, namespace=namespace, audience=audience)

    def namespace_named(
        self, prefix: str = "test", *, labels: Mapping[str, str] | None = None
    ) -> AbstractContextManager[str]:
        """See `ControlPlane.namespace_named`. Without controllers a deleted namespace stays Terminating."""
        return self.control_plane.namespace_named(prefix, labels=labels)

    def stop_apiserver(self) -> None:
        """See `ControlPlane.stop_apiserver`."""
        self.control_plane.stop_apiserver()

    def start_apiserver(self) -> None:
        """See `ControlPlane.start_apiserver`."""
        self.control_plane.start_apiserver()

    def pause_apiserver(self) -> None:
        """See `ControlPlane.pause_apiserver`."""
        self.control_plane.pause_apiserver()

    def resume_apiserver(self) -> None:
        """See `ControlPlane.resume_apiserver`."""
        self.control_plane.resume_apiserver()

    def start_controllers(self) -> None:
        """See `ControlPlane.start_controllers`."""
        self.control_plane.start_controllers()

    def stop_controllers(self) -> None:
        """See `ControlPlane.stop_controllers`."""
        self.control_plane.stop_controllers()


def _free_ports(count: int) -> list[int]:
    """Ports nothing listens on now."""
    free: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise OSError(f"no {count} free ports in {_PORTS}")
