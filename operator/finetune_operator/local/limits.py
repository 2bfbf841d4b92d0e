"""What one machine cannot do of a FineTuneJob or a ModelEndpoint: said before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.shared_fields import GPU_RESOURCE
from finetune_operator.core.names import KUEUE_QUEUE_LABEL
from finetune_operator.core.ports import InvalidError, Manifest
from finetune_operator.job.begin import baseline_name
from finetune_operator.job.resolve import uris_of
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.environment import trainer_is_installed
from finetune_operator.local.gpus import gpus_of_machine
from finetune_operator.local.home import LocalHome
from finetune_operator.local.secrets_files import secret_manifest

_ON_A_CLUSTER = "apply the manifest to a cluster (kubectl apply -f), or"


def obstacles(job: FineTuneJob, *, home: LocalHome) -> Iterator[str]:
    """Each reason why the job cannot run here, with the way out."""
    if not trainer_is_installed():
        yield "the training code is not installed: pip install 'finetune-operator[local]'"
    compute = job.spec.compute
    nodes, gpus = (compute.nodes if compute else None) or 1, (compute.gpus_per_node if compute else None) or 0
    here = len(gpus_of_machine())
    if gpus and nodes > 1:
        yield (
            f"spec.compute: {nodes} nodes with GPUs are more than one machine; {_ON_A_CLUSTER} set compute.nodes to 1"
        )
    elif gpus > here:
        yield (
            f"spec.compute.gpusPerNode: {gpus} GPUs are wanted, this machine has {here}; {_ON_A_CLUSTER} set it to"
            f" {here}"
        )
    yield from _other_gpus("spec.compute.gpuResource", compute.gpu_resource if compute else None)
    for field, name in _secrets(job):
        yield from _secret_obstacles(field, name, lines="KEY=VALUE", home=home)
    for field, uri in uris_of(job.spec).items():
        if field != "spec.artifacts.uri" and not _may_exist(uri, home=home):
            yield f"{field}: {uri} does not exist"
    if not home.is_in_use:  # whoever works here may be about to make it
        yield from _missing(job, home=home)


def notices(job: FineTuneJob) -> Iterator[str]:
    """What is different here, and does not keep the job from running."""
    if KUEUE_QUEUE_LABEL in job.metadata.labels:
        yield f"the label {KUEUE_QUEUE_LABEL} means nothing here: there is no queue, the job starts at once"
    spec = job.spec.compute.pod_template.spec if job.spec.compute and job.spec.compute.pod_template else None
    if spec is not None:
        yield "compute.podTemplate means nothing here: there are no pods to place"
    if job.spec.compute is not None and job.spec.compute.network is not None:
        yield "compute.network means nothing here: processes meet on this machine"
    if job.spec.compute is not None and job.spec.compute.resources is not None:
        yield (
            "compute.resources means nothing here: processes share the machine without limits; Prepare all the same"
            " compares limits.memory with what training needs"
        )


def _other_gpus(field: str, wanted: str | None) -> Iterator[str]:
    if wanted not in (None, GPU_RESOURCE):
        yield f"{field}: {wanted}: GPUs of a machine are {GPU_RESOURCE} here; {_ON_A_CLUSTER} leave the field out"


def _missing(job: FineTuneJob, *, home: LocalHome) -> Iterator[str]:
    """What the job names and would wait for. Here nobody else would make it meanwhile."""
    store, namespace = LocalCluster(home=home).store, job.metadata.namespace
    endpoint = job.spec.endpoint_ref.name if job.spec.endpoint_ref else None
    if endpoint is not None and store.read(kind="ModelEndpoint", namespace=namespace, name=endpoint) is None:
        yield (
            f"spec.endpointRef: there is no ModelEndpoint {endpoint} here; serve it beside this command: finetune up -f"
            " ENDPOINT.yaml"
        )
    config = job.spec.compute.config_ref if job.spec.compute else None
    if config is not None and store.read(kind="ConfigMap", namespace=namespace, name=config.name) is None:
        yield f"spec.compute.configRef: there is no ConfigMap {config.name} here; put it into the file beside the job"
    baseline = baseline_name(job, endpoint=None)
    if baseline is not None and store.read(kind="ModelVersion", namespace=namespace, name=baseline) is None:
        yield (
            f"spec.evaluation.baseline: there is no ModelVersion {baseline} here; `finetune get versions --local` lists"
            " those that there are"
        )


def _secrets(job: FineTuneJob) -> Iterator[tuple[str, str]]:
    spec = job.spec
    named = {"artifacts": spec.artifacts.secret_ref, "model": spec.model.secret_ref, "data": spec.data.secret_ref}
    for field, reference in named.items():
        if reference is not None:
            yield f"spec.{field}.secretRef.name", reference.name


def _secret_obstacles(field: str, name: str, *, lines: str, home: LocalHome) -> Iterator[str]:
    path = home.secret(name=name)
    if not path.is_file():
        yield f"{field}: there is no Secret {name} here; write {lines} lines into {path}"
        return
    try:
        secret_manifest(path=path, namespace="default", name=name)
    except InvalidError as error:
        yield f"{field}: {error}"


def _may_exist(uri: str, *, home: LocalHome) -> bool:
    """Whether a file is there, as far as this machine can tell without asking anybody."""
    path = home.path_of(uri)
    return path is None or path.exists()


# -- endpoints ---------------------------------------------------------------------------------------------------------


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
    yield from _other_gpus("spec.serving.gpuResource", serving.gpu_resource)
    named = (
        ("spec.serving.secretRef", serving.secret_ref, "KEY=VALUE"),
        ("spec.gateway.apiKeysSecretRef", gateway.api_keys_secret_ref if gateway is not None else None, "CLIENT=KEY"),
    )
    for field, reference, lines in named:
        if reference is not None:
            yield from _secret_obstacles(f"{field}.name", reference.name, lines=lines, home=home)


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
