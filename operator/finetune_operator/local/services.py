"""What a Service is on one machine: a file that says on which loopback port each of its ports is."""

from __future__ import annotations

import socket

from finetune_operator.local.files import read_json, write_json
from finetune_operator.local.home import LocalHome

HOST = "127.0.0.1"
GANG_PORT = "gang"
"""The name of the port at which the pods of a Job meet."""
HTTP_PORT = "http"
"""The name of the port of servers and gateways."""
STATUS_PORT = "status"
"""The name of the port of gateways for probes and metrics; servers have those at their own."""


class LocalServices:
    """Ports by Service, chosen once and kept as long as the Service is there."""

    def __init__(self, *, home: LocalHome) -> None:
        self._home = home

    def port(self, *, namespace: str, name: str, port: str) -> int:
        """The loopback port of a Service's port; a free one at the first time of asking."""
        known = self.known_port(namespace=namespace, name=name, port=port)
        return known or self.reserve(namespace=namespace, name=name, port=port, number=free_port())

    def usable_port(self, *, namespace: str, name: str, port: str) -> int:
        """The same, for whoever is about to listen there: another one where somebody else has taken it meanwhile."""
        known = self.known_port(namespace=namespace, name=name, port=port)
        if known is not None and is_free(known):
            return known
        return self.reserve(namespace=namespace, name=name, port=port, number=free_port())

    def known_port(self, *, namespace: str, name: str, port: str) -> int | None:
        """The port if it was chosen before."""
        known = read_json(self._home.service(namespace=namespace, name=name)) or {}
        number: int | None = known.get("ports", {}).get(port)
        return number

    def reserve(self, *, namespace: str, name: str, port: str, number: int) -> int:
        """Choose a port."""
        path = self._home.service(namespace=namespace, name=name)
        known = read_json(path) or {"host": HOST, "ports": {}}
        known["ports"][port] = number
        write_json(path, known)
        return number

    def url(self, namespace: str, name: str) -> str:
        """Base URL of a version's servers (Surroundings.server_url)."""
        return f"http://{HOST}:{self.port(namespace=namespace, name=name, port=HTTP_PORT)}"


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        # What was closed a moment ago does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
