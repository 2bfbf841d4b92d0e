"""What one machine cannot do of a ModelEndpoint: said before anything is served."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.modelendpoint import ModelEndpoint
from finetune_operator.local.environment import trainer_is_installed
from finetune_operator.local.gpus import gpus_of_machine
from finetune_operator.local.home import LocalHome
from finetune_operator.ports import Manifest

_ON_A_CLUSTER = "apply the manifest to a cluster (kubectl apply -f), or"


def endpoint_obstacles(endpoint: ModelEndpoint, *, home: LocalHome) -> Iterator[str]:
    """Each reason why the endpoint cannot be served here, with the way out."""
    if not trainer_is_installed():
        yield "the serving code is not installed: pip install 'finetune-operator[local]'"
    serving, gateway = endpoint.spec.serving, endpoint.spec.gateway
    if serving.runtime == "VLLM":
        yield f"spec.serving.runtime: VLLM is an image of its own; {_ON_A_CLUSTER} set it to Transformers"
    here = len(gpus_of_machine())
    if (serving.gpus or 0) > here:
        yield (
            f"spec.serving.gpus: {serving.gpus} GPUs are wanted for each version, this machine has {here};"
            f" {_ON_A_CLUSTER} set it to {here}"
        )
    named = (
        ("spec.serving.secretRef", serving.secret_ref, "KEY=VALUE"),
        ("spec.gateway.apiKeysSecretRef", gateway.api_keys_secret_ref if gateway is not None else None, "CLIENT=KEY"),
    )
    for field, reference, lines in named:
        if reference is not None and not (path := home.secret(name=reference.name)).is_file():
            yield f"{field}.name: there is no Secret {reference.name} here; write {lines} lines into {path}"


def endpoint_notices(endpoint: ModelEndpoint) -> Iterator[str]:
    """What is different here, and does not keep the endpoint from being served."""
    serving, gateway = endpoint.spec.serving, endpoint.spec.gateway
    if (serving.replicas or 1) > 1:
        yield f"spec.serving.replicas: one server of each version runs here, not {serving.replicas}"
    if gateway is not None and (gateway.replicas or 1) > 1:
        yield f"spec.gateway.replicas: one gateway runs here, not {gateway.replicas}"
    if serving.pod_template is not None or (gateway is not None and gateway.pod_template is not None):
        yield "podTemplate means nothing here: there are no pods to place"
    if serving.resources is not None or (gateway is not None and gateway.resources is not None):
        yield "resources means nothing here: processes share the machine without limits"


def for_one_machine(manifest: Manifest) -> Manifest:
    """The endpoint with one server of each version and one gateway: a port cannot be shared by several for good."""
    spec = manifest["spec"]
    serving = {**spec["serving"], "replicas": 1}
    gateway = {**(spec.get("gateway") or {}), "replicas": 1}
    return {**manifest, "spec": {**spec, "serving": serving, "gateway": gateway}}
