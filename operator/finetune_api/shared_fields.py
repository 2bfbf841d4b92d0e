"""Fields that more than one resource has: pod overlays, metrics of a comparison, artifacts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Digest, Name, ObjectReference, Rule, Time, Uri, form

Task = Literal["Chat", "CausalLM", "SequenceClassification", "Seq2Seq"]
Verdict = Literal["Pass", "Fail", "Inconclusive"]
MetricName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    form("a metric's name in lower case letters, digits and _", "exact_match", pattern=r"^[a-z][a-z0-9_]*$"),
]

_LABEL = form(
    "letters and digits, - and _ and . between them, 63 at most",
    "a100-80gb",
    rule="size(self) <= 63 && self.matches('^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$')",
)
Labels = Annotated[dict[str, Annotated[str, Field(max_length=4096), _LABEL]], Field(max_length=64)]
Annotations = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
OpenObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""An object that the schema does not look into."""
Quantity = Annotated[
    str | int,
    form(
        "a quantity, not below 0",
        *("2", "500m", "16Gi"),
        rule="type(self) == int ? self >= 0 : isQuantity(self) && !self.startsWith('-')",
    ),
]
"""resource.Quantity of Kubernetes, not below zero. The schema refuses others; what was stored before can be read."""
Quantities = Annotated[dict[str, Quantity], Field(json_schema_extra={"maxProperties": 15})]
"""Quantities by resource. The schema refuses more; what was stored before can be read."""
EXTENDED_RESOURCE = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
"""How a resource that a device plugin offers is named."""
GpuResource = Annotated[
    str,
    Field(max_length=317),
    form(
        "a resource as a device plugin offers it",
        *("nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.10gb"),
        pattern=EXTENDED_RESOURCE,
    ),
]
GPU_RESOURCE = "nvidia.com/gpu"
"""The default."""


def gpu_rules(*, prefix: str, count: str) -> tuple[Rule, ...]:
    """Of a node with `gpuResource`, `resources` and the field `count`, which `prefix` leads to in messages."""
    some = f"(has(self.{count}) && self.{count} > 0)"
    a_gpu = "name.matches('gpu|/mig-')"
    return (
        *(
            Rule(
                rule=f"!has(self.resources) || !has(self.resources.{part}) || !self.resources.{part}.exists(name, {a_gpu})",
                message=f"{prefix}.resources.{part}: {{self.resources.{part}.filter(name, {a_gpu})[0]}}: GPUs are what {prefix}.{count} and {prefix}.gpuResource ask for; remove it, and set those",
            )
            for part in ("requests", "limits")
        ),
        Rule(
            rule=f"!has(self.gpuResource) || {some}",
            message=f"{prefix}.gpuResource: {{self.gpuResource}} needs {prefix}.{count}: 1 or more",
        ),
        Rule(
            rule=f"!has(self.gpuResource) || !self.gpuResource.contains('/mig-') || !{some} || self.{count} == 1",
            message=f"{prefix}.{count}: {{self.{count}}} parts of GPUs cannot work together in a pod, since CUDA shows a process one of them; with {prefix}.gpuResource: {{self.gpuResource}} set it to 1",
        ),
    )


class Release(ApiModel):
    """Something that a person may do now."""

    action: Literal["Approve", "Reject", "RollBack", "Resume", "Unpin", "Withdraw", "Unsuspend"]
    """The first four: of `finetune` and by annotation. Unpin: empty spec.version. Withdraw: remove
    finetune.dev/rollback. Unsuspend: set spec.suspend to false."""
    effect: str
    """What comes of it, in a sentence."""


class NextStatus(ApiModel):
    """What holds the object, and what would release it. Nothing here is counted: counts are beside it."""

    waits_for: Annotated[list[str], Field(max_length=16)] = Field(default_factory=list)
    """What has to come, one sentence each; empty: nothing."""
    until: Time | None = None
    """When the wait ends by itself, or is given up."""
    then: Annotated[list[str], Field(max_length=16)] = Field(default_factory=list)
    """What follows when nobody does anything."""
    release: Annotated[list[Release], Field(max_length=8)] = Field(default_factory=list)
    """What a person may do now."""


class Resources(ApiModel):
    """Compute resources of one container, as in a Pod."""

    requests: Quantities | None = None
    """What is reserved, by resource: cpu, memory, ephemeral-storage."""
    limits: Quantities | None = None
    """What may be used at most, by resource."""


class Toleration(ApiModel):
    """A toleration of node taints, as in a Pod."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """The taint's key; unset with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists: any value. Equal: the value given."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """The taint's value, for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; unset: all effects."""
    toleration_seconds: int | None = None
    """With effect NoExecute: how long the pod stays on the node after the taint came."""


class PodOverlaySpec(ApiModel):
    """The fields of a Pod that a user may set. Anything else would weaken the pod's isolation and is refused."""

    node_selector: Labels | None = None
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Taints of nodes that the pods accept."""
    affinity: OpenObject | None = None
    """Affinity to nodes and pods, as in a Pod; the schema does not look into it."""
    image_pull_secrets: Annotated[list[ObjectReference], Field(max_length=8)] | None = None
    """Secrets of the namespace with which images are pulled."""
    runtime_class_name: Name | None = None
    """The RuntimeClass of the pods, e.g. nvidia."""
    priority_class_name: Name | None = None
    """The PriorityClass of the pods: who gives way to whom."""
    scheduler_name: Name | None = None
    """Who finds nodes for the pods, e.g. volcano. Default: the cluster's own scheduler."""
    topology_spread_constraints: Annotated[list[OpenObject], Field(max_length=8)] | None = None
    """How pods are spread over nodes or zones, as in a Pod; the schema does not look into it."""
    service_account_name: Name | None = None
    """Service account for workload identity. Its token is not mounted unless the cloud's webhook asks for it."""


class PodOverlayMetadata(ApiModel):
    """Labels and annotations added to the pods."""

    labels: Labels | None = None
    """Labels of the pods; those of the operator cannot be replaced."""
    annotations: Annotations | None = None
    """Annotations of the pods."""


class PodOverlay(ApiModel):
    """What to add to the pods that the operator makes: an allowlist, not a pod template."""

    metadata: PodOverlayMetadata | None = None
    spec: PodOverlaySpec | None = None


class ThresholdRange(ApiModel):
    """Absolute bounds that the candidate's interval must lie inside."""

    min: float | None = None
    """The lowest value that is accepted."""
    max: float | None = None
    """The highest value that is accepted."""

    cel_rules = (
        Rule(
            rule="has(self.min) || has(self.max)",
            message="thresholdRange: min, max or both must be set",
        ),
        Rule(
            rule="!has(self.min) || !has(self.max) || self.min <= self.max",
            message="thresholdRange.min: {self.min} must not be greater than thresholdRange.max: {self.max}",
        ),
    )


class Software(ApiModel):
    """What ran: image digests and package versions."""

    trainer_image: Annotated[str, Field(max_length=1024)] | None = None
    """The image that trained it."""
    packages: Annotated[dict[str, Annotated[str, Field(max_length=128)]], Field(max_length=64)] | None = None
    """Versions of the Python packages that trained it, by name."""


class Artifact(ApiModel):
    """A stored model: where it is, and the digest that proves it is the one that was evaluated."""

    uri: Uri
    """The folder of the model's files."""
    digest: Digest
    """sha256 over the sorted lines `<file sha256>  <relative path>` of all files."""
    format: Literal["Adapter", "Full", "Merged"]
    """Adapter: to be put on its base. Full: all weights. Merged: an adapter and its base in one."""
    size_bytes: Annotated[int, Field(ge=0)]
    """Of all files together."""


class MetricResult(ApiModel):
    """One row of the comparison of candidate and baseline on the same held-out examples."""

    metric: MetricName
    """Its name, e.g. accuracy."""
    candidate: float | None = None
    """The candidate's value."""
    baseline: float | None = None
    """The baseline's value on the same examples."""
    difference: float | None = None
    """candidate - baseline, in the metric's own units."""
    low: float | None = None
    """Lower end of the 95 % interval of the difference."""
    high: float | None = None
    """Upper end of the 95 % interval of the difference."""
    n: Annotated[int, Field(ge=0)] = 0
    """Held-out examples."""
    groups: Annotated[int, Field(ge=0)] = 0
    """Near-duplicate groups among them: the independent units."""
    better: Literal["Higher", "Lower"] = "Higher"
    """Whether higher or lower values are better."""
    report: bool = False
    """Shown, not judged."""
    verdict: Verdict | None = None
    """Pass: proven acceptable. Fail: proven unacceptable. Inconclusive: neither. Unset: shown, not judged."""
    reason: Annotated[str, Field(max_length=512)] | None = None
    """Why the verdict is not Pass, in plain words."""
    method: Annotated[str, Field(max_length=64)] | None = None
    """The interval's method, e.g. `tango-score`."""
    power: float | None = None
    """Probability of Pass at this n if candidate and baseline were equal."""
    needed_n: int | None = None
    """Examples needed for 80 % power."""

    @property
    def worse_beyond_chance(self) -> bool:
        """Whether the whole interval of the difference lies on the worse side, whatever was asked of the metric."""
        if self.low is None or self.high is None:
            return False
        return self.high < 0 if self.better == "Higher" else self.low > 0


class ResolvedModel(ApiModel):
    """A base model as it was read: immutable revision and digest."""

    uri: Uri
    """Where the model was read from."""
    revision: Annotated[str, Field(max_length=256)] | None = None
    """The commit that a branch or tag of the hub meant when it was read."""
    digest: Digest
    """sha256 over the model's files."""
    licence: Annotated[str, Field(max_length=128)] | None = None
    """As the model's own files name it; unset where they name none."""
    materialized_uri: Uri | None = None
    """A safetensors copy made from it, where the original is of another format (GGUF)."""

    @property
    def loadable_uri(self) -> str:
        """Where to load the weights from."""
        return self.materialized_uri or self.uri
