"""What an administrator sets, once, for the whole operator. Read from the environment in this one place."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from finetune_api.progress import TOKEN_AUDIENCE
from finetune_api.shared_fields import Resources
from finetune_http.settings import Expected, Positive, Settings, Switch

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{0,63}")


def _split(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _namespaces(names: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := [each for each in names if not _NAMESPACE.fullmatch(each)]:
        raise ValueError(f"{wrong[0]!r} is no name of a namespace")
    return names


def _none(value: Any) -> Any:
    return None if value == "none" else value


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _peers(peers: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    if not all(each and set(each) <= {"namespaceSelector", "podSelector", "ipBlock"} for each in peers):
        raise ValueError("not a peer")
    return peers


def _instance(name: str) -> str:
    if not _INSTANCE.fullmatch(name):
        raise ValueError(f"{name!r} is no name; letters, digits, '.', '_' and '-', at most 63")
    return name


_Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
_Namespaces = Annotated[_Words, AfterValidator(_namespaces)]
# Pods do not run as root.
_Id = Annotated[Positive | None, BeforeValidator(_none), Expected("a number greater than 0, or none")]
_Profile = Annotated[Literal["RuntimeDefault"] | None, BeforeValidator(_none), Expected("RuntimeDefault or none")]
_Instance = Annotated[str, AfterValidator(_instance)]
_PodResources = Annotated[
    Resources, NoDecode, BeforeValidator(_json), Expected('JSON such as {"requests": {"cpu": "1"}}')
]
_Peers = Annotated[
    tuple[dict[str, Any], ...],
    NoDecode,
    BeforeValidator(_json),
    AfterValidator(_peers),
    Expected('a JSON list of peers such as [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}]'),
]


def _requests(*, cpu: str, memory: str) -> Resources:
    return Resources(requests={"cpu": cpu, "memory": memory})


class OperatorConfig(Settings):
    """Settings of the operator. Each can be set by the environment variable FINETUNE_<NAME IN CAPITALS>."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_")

    trainer_image: Annotated[str, Expected("the image built from trainer_image/Dockerfile")]
    """Image of all containers of a run. A run keeps the one that it began with."""
    gateway_image: str = ""
    """Image of the endpoints' gateways. Endpoints are refused where it is not set."""
    vllm_image: str = ""
    """Image of servers with runtime VLLM, such as vllm/vllm-openai:VERSION. Such endpoints wait where it is not set."""
    vllm_cpu_image: str = ""
    """The same of servers without GPUs (`serving.gpus: 0`), such as vllm/vllm-openai-cpu:VERSION."""
    image_pull_policy: str = "IfNotPresent"
    namespaces: _Namespaces = ()
    """Namespaces that are watched; empty: all."""
    excluded_namespaces: _Namespaces = ()
    """Namespaces that are left out where all are watched."""
    instance: _Instance = ""
    """This operator's name in `status.instance` of its objects; those of other operators are left alone. Empty: on a
    cluster the operator's own namespace, else nobody asks."""
    allowed_roots: _Words = ("pvc://", "s3://", "gs://", "hf://")
    """URI prefixes that jobs may read and write. file:// is a path inside a container: of no use on a cluster."""
    trust_remote_code: Switch = False
    """Let base models bring Python code of their own. Whoever can create a job can then run any code in its pods."""
    token_audience: str = TOKEN_AUDIENCE
    """Audience of the tokens that pods show at the door."""

    workers: Positive = 8
    """Objects that are reconciled at the same time."""
    resync_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Every object that has not ended is looked at this often even if no event came."""

    prepare_resources: _PodResources = _requests(cpu="500m", memory="1Gi")
    """Of the container that prepares the data. In the environment: JSON, as in a Pod."""
    compute_resources: _PodResources = _requests(cpu="1", memory="2Gi")
    """Of training and evaluation containers of a job that does not set compute.resources."""
    server_resources: _PodResources = _requests(cpu="500m", memory="1Gi")
    """Of the servers of an endpoint that does not set serving.resources."""
    gateway_resources: _PodResources = _requests(cpu="100m", memory="128Mi")
    """Of the gateways of an endpoint that does not set gateway.resources."""
    tracing_endpoint: Annotated[
        str, Field(pattern=r"^(https?://[^\s/]+\S*)?$"), Expected("a URL such as http://collector.tracing:4318")
    ] = ""
    """A collector of OpenTelemetry to which gateways send spans over OTLP/HTTP. Empty: none are made."""
    server_url: str = "http://{service}.{namespace}.svc:{port}"
    """How gateways reach a version's servers."""
    server_network_policy: Switch = True
    """Let nobody but an endpoint's gateways, and `metrics_from`, connect to its servers (NetworkPolicy)."""
    metrics_from: _Peers = ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},)
    """Whence metrics are scraped: peers as in a NetworkPolicy. In the environment: a JSON list."""
    metrics: Literal["Open", "Authenticated", "Off"] = "Open"
    """The operator's own. Open: to whom the network lets through, at the probes' port. Authenticated: by TLS at a port
    of their own, to whom the cluster lets `get` /metrics. Off: nowhere."""
    image_pull_secrets: _Words = ()
    """Secrets with which all pods of runs and endpoints pull their images, beside those of their podTemplate: each
    namespace has to have them."""
    run_as_user: _Id = 65532
    """User of all pods; `none`: left to the cluster, as OpenShift's ranges want it. The images can run as any user."""
    run_as_group: _Id = 65532
    """Their group, or `none`."""
    fs_group: _Id = 65532
    """The group that owns what claims hold, or `none`."""
    seccomp_profile: _Profile = "RuntimeDefault"
    """Type of their seccomp profile: RuntimeDefault, or `none`: left to the cluster."""
    tmp_size_limit: str | None = None
    """sizeLimit of the containers' /tmp, e.g. `100Gi`. None: bounded by the node's disk only."""
    shm_size_limit: str | None = None
    """sizeLimit of /dev/shm in pods with several training processes and in those of vLLM, part of the memory limit.
    None: 1Gi a process; of vLLM 1Gi, and 1Gi a GPU."""

    termination_grace_seconds: Positive = 120
    """From SIGTERM to SIGKILL: the time for a last checkpoint."""
    unreachable_seconds: int = 30
    """How long a pod stays bound to a node that is not ready or not reachable."""
    lost_pod_seconds: int = 30
    """A pod on a lost node, which nobody can confirm to be dead, holds up the next attempt for this long."""
    evidence_seconds: int = 120
    """How long the cause of a failure in a gang stays open while other pods of it have not ended."""
    image_pull_deadline_seconds: Positive = 600
    """An image that cannot be pulled, or a container that cannot be configured, for this long fails the run."""
    start_deadline_seconds: Positive = 3600
    """A pod that has a node but no running container for this long fails the attempt."""
    reference_deadline_seconds: Positive = 600
    """How long a job waits for objects that it names and that do not exist yet: GitOps tools apply in any order."""

    claim_mount_root: str = "/mnt/claims"
    """Claims of pvc:// URIs are mounted at <this>/<claim>."""
    master_port: Positive = 29500
    """Port of rank 0 in a gang."""

    @model_validator(mode="after")
    def _all_or_some(self) -> Self:
        if self.namespaces and self.excluded_namespaces:
            chosen, left_out = self.variable("namespaces"), self.variable("excluded_namespaces")
            raise ValueError(f"{left_out}: {chosen} is set and names all that is watched; set one of the two")
        return self
