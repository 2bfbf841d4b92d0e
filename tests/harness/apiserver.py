"""An apiserver and its etcd on loopback ports, for tests that need the API but no nodes. No root needed."""

from __future__ import annotations

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import tools
from tests.harness.controlplane import ControlPlane
from tests.harness.guard import Guard

_LOOPBACK = "127.0.0.1"
# Below the range of ephemeral ports: no client's outgoing connection takes a port between its choice and its use.
_PORTS = range(20000, 32000)


@dataclass(frozen=True, kw_only=True)
class ApiServer(ControlPlane):
    """A control plane without nodes. Without `start_controllers` a deleted namespace stays Terminating."""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[ApiServer]:
        """A fresh one, which is gone afterwards, also when the test run is killed."""
        programs = tools.programs(tools.API_PROGRAMS)
        folder = Path(tempfile.mkdtemp(prefix="finetune-api-"))
        guard = Guard.start(folder)
        try:
            port, *etcd = _free_ports(3)
            server = cls(folder=folder, programs=programs, address=_LOOPBACK, port=port, etcd_ports=(etcd[0], etcd[1]))
            server.prepare()
            server.start()
            yield server
        finally:
            guard.remove()


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
