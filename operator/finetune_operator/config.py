"""What an administrator sets, once, for the whole operator. Read from the environment in this one place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from finetune_api.progress import TOKEN_AUDIENCE
from finetune_api.shared_fields import Resources


class ConfigError(ValueError):
    """A setting cannot be used. `str()` names the variable, the reason and the way out."""


def _requests(*, cpu: str, memory: str) -> Resources:
    return Resources(requests={"cpu": cpu, "memory": memory})


@dataclass(frozen=True, kw_only=True)
class OperatorConfig:
    """Settings of the operator. Each can be set by the environment variable FINETUNE_<NAME IN CAPITALS>."""

    trainer_image: str
    """Image of all containers of a run. A run keeps the one that it began with."""
    gateway_image: str = ""
    """Image of the endpoints' gateways. Endpoints are refused where it is not set."""
    vllm_image: str = ""
    """Image of servers with runtime VLLM, such as vllm/vllm-openai:VERSION. Such endpoints wait where it is not set."""
    image_pull_policy: str = "IfNotPresent"
    namespaces: tuple[str, ...] = ()
    """Namespaces that are watched; empty: all."""
    excluded_namespaces: tuple[str, ...] = ()
    """Namespaces that are left out where all are watched."""
    instance: str = ""
    """This operator's name in `status.instance` of its objects; those of other operators are left alone. Empty: on a
    cluster the operator's own namespace, else nobody asks."""
    allowed_roots: tuple[str, ...] = ("pvc://", "s3://", "gs://", "hf://")
    """URI prefixes that jobs may read and write. file:// is a path inside a container: of no use on a cluster."""
    trust_remote_code: bool = False
    """Let base models bring Python code of their own. Whoever can create a job can then run any code in its pods."""
    token_audience: str = TOKEN_AUDIENCE
    """Audience of the tokens that pods show at the door."""

    workers: int = 8
    """Objects that are reconciled at the same time."""
    resync_seconds: float = 600.0
    """Every object that has not ended is looked at this often even if no event came."""

    prepare_resources: Resources = field(default_factory=lambda: _requests(cpu="500m", memory="1Gi"))
    """Of the container that prepares the data. In the environment: JSON, as in a Pod."""
    compute_resources: Resources = field(default_factory=lambda: _requests(cpu="1", memory="2Gi"))
    """Of training and evaluation containers of a job that does not set compute.resources."""
    server_resources: Resources = field(default_factory=lambda: _requests(cpu="500m", memory="1Gi"))
    """Of the servers of an endpoint that does not set serving.resources."""
    gateway_resources: Resources = field(default_factory=lambda: _requests(cpu="100m", memory="128Mi"))
    """Of the gateways of an endpoint that does not set gateway.resources."""
    server_url: str = "http://{service}.{namespace}.svc:{port}"
    """How gateways reach a version's servers."""
    server_network_policy: bool = True
    """Let nobody but an endpoint's gateways, and `metrics_from`, connect to its servers (NetworkPolicy)."""
    metrics_from: tuple[dict[str, Any], ...] = (
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    )
    """Whence metrics are scraped: peers as in a NetworkPolicy. In the environment: a JSON list."""
    run_as_user: int | None = 65532
    """User of all pods; `none`: left to the cluster, as OpenShift's ranges want it. The images can run as any user."""
    run_as_group: int | None = 65532
    """Their group, or `none`."""
    fs_group: int | None = 65532
    """The group that owns what claims hold, or `none`."""
    seccomp_profile: str | None = "RuntimeDefault"
    """Type of their seccomp profile: RuntimeDefault, or `none`: left to the cluster."""
    tmp_size_limit: str | None = None
    """sizeLimit of the containers' /tmp, e.g. `100Gi`. None: bounded by the node's disk only."""

    termination_grace_seconds: int = 120
    """From SIGTERM to SIGKILL: the time for a last checkpoint."""
    unreachable_seconds: int = 30
    """How long a pod stays bound to a node that is not ready or not reachable."""
    lost_pod_seconds: int = 30
    """A pod on a lost node, which nobody can confirm to be dead, holds up the next attempt for this long."""
    evidence_seconds: int = 120
    """How long the cause of a failure in a gang stays open while other pods of it have not ended."""
    image_pull_deadline_seconds: int = 600
    """An image that cannot be pulled, or a container that cannot be configured, for this long fails the run."""
    start_deadline_seconds: int = 3600
    """A pod that has a node but no running container for this long fails the attempt."""
    reference_deadline_seconds: int = 600
    """How long a job waits for objects that it names and that do not exist yet: GitOps tools apply in any order."""

    claim_mount_root: str = "/mnt/claims"
    """Claims of pvc:// URIs are mounted at <this>/<claim>."""
    master_port: int = 29500
    """Port of rank 0 in a gang."""

    def __post_init__(self) -> None:
        if not self.trainer_image:
            raise ConfigError("FINETUNE_TRAINER_IMAGE is not set; name the image built from trainer_image/Dockerfile")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"{variable(name)}: {value} is not allowed; it must be greater than 0")
        for name in ("namespaces", "excluded_namespaces"):
            wrong = [each for each in getattr(self, name) if not _NAMESPACE.fullmatch(each)]
            if wrong:
                raise ConfigError(f"{variable(name)}: {wrong[0]!r} is no name of a namespace")
        if self.namespaces and self.excluded_namespaces:
            raise ConfigError(
                f"{variable('excluded_namespaces')}: {variable('namespaces')} is set and names all that is watched; "
                "set one of the two"
            )
        if not _INSTANCE.fullmatch(self.instance):
            raise ConfigError(
                f"{variable('instance')}: {self.instance!r} is no name; letters, digits, '.', '_' and '-', at most 63"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> OperatorConfig:
        """Read all settings. Unset or empty variables keep their defaults. Raises ConfigError."""
        given = {item.name: environment.get(variable(item.name), "") for item in fields(cls)}
        values = {name: _parsed(name=name, text=text) for name, text in given.items() if text}
        return cls(**{"trainer_image": "", **values})  # type: ignore[arg-type] # _parsed gives each field its own type


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"FINETUNE_{name.upper()}"


_TEXTS = {
    "trainer_image",
    "gateway_image",
    "vllm_image",
    "server_url",
    "image_pull_policy",
    "token_audience",
    "tmp_size_limit",
    "claim_mount_root",
    "instance",
}
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{0,63}")
_LISTS = {"namespaces", "excluded_namespaces", "allowed_roots"}
_SWITCHES = {"trust_remote_code", "server_network_policy"}
_PEERS = {"metrics_from"}
_IDS = {"run_as_user", "run_as_group", "fs_group"}
_RESOURCES = {"prepare_resources", "compute_resources", "server_resources", "gateway_resources"}
_POSITIVE = (
    "workers",
    "resync_seconds",
    "termination_grace_seconds",
    "image_pull_deadline_seconds",
    "start_deadline_seconds",
    "reference_deadline_seconds",
    "master_port",
)


def _parsed(*, name: str, text: str) -> object:
    try:
        if name in _TEXTS:
            return text
        if name in _LISTS:
            return tuple(text.replace(",", " ").split())
        if name in _SWITCHES:
            return {"true": True, "false": False}[text.lower()]
        if name in _PEERS:
            return _peers(text)
        if name in _IDS:
            return None if text == "none" else _positive(text)
        if name == "seccomp_profile":
            return {"RuntimeDefault": text, "none": None}[text]
        if name in _RESOURCES:
            return Resources.model_validate_json(text)
        return float(text) if name == "resync_seconds" else int(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{variable(name)}: {text!r} cannot be read; expected {_expected(name)}") from error


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError("pods do not run as root")
    return number


def _peers(text: str) -> tuple[dict[str, Any], ...]:
    peers = json.loads(text)
    known = {"namespaceSelector", "podSelector", "ipBlock"}
    if not isinstance(peers, list) or not all(isinstance(each, dict) and each and set(each) <= known for each in peers):
        raise ValueError(text)
    return tuple(peers)


def _expected(name: str) -> str:
    if name in _PEERS:
        return 'a JSON list of peers such as [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}]'
    if name in _SWITCHES:
        return "true or false"
    if name in _IDS:
        return "a number greater than 0, or none"
    if name == "seccomp_profile":
        return "RuntimeDefault or none"
    return 'JSON such as {"requests": {"cpu": "1"}}' if name in _RESOURCES else "a number"
