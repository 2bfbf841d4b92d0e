"""At which loopback ports a pod of an endpoint listens, and how its processes are told.

A version's server has its Service's port, so that routes to it stay true when it is started again. The gateway has the
endpoint's, which clients know. All others are free ones. They are recorded with the pod before they are used.
"""

from __future__ import annotations

import json

from finetune_api.run import SERVE_HOST_VARIABLE, SERVE_PORT_VARIABLE
from finetune_operator.core.names import ENDPOINT_LABEL
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.names import COMPONENT_LABEL, GATEWAY, SERVER
from finetune_operator.local.home import LocalHome
from finetune_operator.local.services import HOST, HTTP_PORT, STATUS_PORT, LocalServices, free_port

PORTS_ANNOTATION = "local.finetune.dev/ports"
OBSERVATIONS_FILE = "observations.json"
"""In the folder of a gateway's pod: what it reports."""


def assigned_ports(pod: Manifest) -> dict[str, int]:
    """Port name -> port on this machine, as far as it was recorded."""
    ports: dict[str, int] = json.loads((pod["metadata"].get("annotations") or {}).get(PORTS_ANNOTATION, "{}"))
    return ports


def with_ports(pod: Manifest, *, services: LocalServices) -> Manifest:
    """The pod with a port for each that its container listens at."""
    names = [each["name"] for each in pod["spec"]["containers"][0].get("ports") or ()]
    ports = {name: _port(pod, name=name, services=services) for name in names}
    annotations = {**(pod["metadata"].get("annotations") or {}), PORTS_ANNOTATION: json.dumps(ports)}
    return {**pod, "metadata": {**pod["metadata"], "annotations": annotations}}


def variables(pod: Manifest, *, home: LocalHome) -> dict[str, str]:
    """What the pod's process must know of this machine."""
    ports, labels = assigned_ports(pod), _labels(pod)
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    if labels.get(COMPONENT_LABEL) == SERVER:
        return {SERVE_HOST_VARIABLE: HOST, SERVE_PORT_VARIABLE: str(ports[HTTP_PORT])}
    if labels.get(COMPONENT_LABEL) == GATEWAY:
        settings = {
            "HOST": HOST,
            "PORT": str(ports[HTTP_PORT]),
            "STATUS_PORT": str(ports[STATUS_PORT]),
            # A new one listens before the one that it replaces has answered all of its requests.
            "SHARE_PORT": "true",
            "ROUTES_FILE": str(home.routes(namespace=namespace, endpoint=labels[ENDPOINT_LABEL])),
            "OBSERVATIONS_FILE": str(home.pod(namespace=namespace, name=name) / OBSERVATIONS_FILE),
        }
        return {f"FINETUNE_GATEWAY_{key}": value for key, value in settings.items()}
    return {}


def _port(pod: Manifest, *, name: str, services: LocalServices) -> int:
    namespace, labels = pod["metadata"]["namespace"], _labels(pod)
    component = labels.get(COMPONENT_LABEL)
    if name == HTTP_PORT and component == GATEWAY:
        return services.port(namespace=namespace, name=labels[ENDPOINT_LABEL], port=name)
    if name == HTTP_PORT and component == SERVER:
        # Deployment and Service of a version have the same name.
        return services.usable_port(namespace=namespace, name=pod["metadata"]["ownerReferences"][0]["name"], port=name)
    return free_port()


def _labels(pod: Manifest) -> dict[str, str]:
    labels: dict[str, str] = pod["metadata"].get("labels") or {}
    return labels
