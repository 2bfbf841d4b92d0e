"""What a Service is on one machine: a file that says on which loopback port each of its ports is."""

from __future__ import annotations

import socket

from finetune_operator.local.files import read_json, write_json
from finetune_operator.local.home import LocalHome

HOST = "127.0.0.1"
GANG_PORT = "gang"
"""The name of the port at which the pods of a Job meet."""


class LocalServices:
    """Ports by Service, chosen once and kept as long as the Service is there."""

    def __init__(self, *, home: LocalHome) -> None:
        self._home = home

    def port(self, *, namespace: str, name: str, port: str) -> int:
        """The loopback port of a Service's port; a free one at the first time of asking."""
        path = self._home.service(namespace=namespace, name=name)
        known = read_json(path) or {"host": HOST, "ports": {}}
        if port not in known["ports"]:
            known["ports"][port] = _free_port()
            write_json(path, known)
        return int(known["ports"][port])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
