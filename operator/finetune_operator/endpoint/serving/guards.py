"""What stands around the servers of an endpoint: who may ask them, and how many may be drained at once.

Servers ask for no key. The gateway does, counts, and knows which version a user belongs to: whoever reached a server
past it would get what no rule of the endpoint says.
"""

from __future__ import annotations

from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.names import (
    GATEWAY,
    SERVER,
    SERVER_PORT,
    VERSION_UID_LABEL,
    metadata_of,
    selector,
    server_name,
    servers_name,
)


def server_policy(*, endpoint: ModelEndpoint, config: OperatorConfig) -> Manifest:
    """Only the endpoint's own gateways, and what scrapes metrics, may connect to its servers. Kubelet always may."""
    name = endpoint.metadata.name
    gateways = {"podSelector": {"matchLabels": selector(endpoint=name, component=GATEWAY)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata_of(endpoint=endpoint, name=servers_name(name), component=SERVER),
        "spec": {
            "podSelector": {"matchLabels": selector(endpoint=name, component=SERVER)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [gateways, *config.metrics_from],
                    "ports": [{"protocol": "TCP", "port": SERVER_PORT}],
                }
            ],
        },
    }


def server_budget(*, endpoint: ModelEndpoint, version_uid: str) -> Manifest:
    """Servers of a version are drained one after the other; those that do not serve hold up nobody.

    Of this endpoint's own: another one may serve the same version, and a pod with two budgets cannot be drained at all.
    """
    name = server_name(endpoint=endpoint.metadata.name, version_uid=version_uid)
    own = {**selector(endpoint=endpoint.metadata.name, component=SERVER), VERSION_UID_LABEL: version_uid}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata_of(endpoint=endpoint, name=name, component=SERVER),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": own},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
