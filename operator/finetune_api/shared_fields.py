"""Fields that more than one resource has: pod overlays, metrics of a comparison, artifacts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Digest, Name, ObjectReference, Rule, Uri

Task = Literal["Chat", "CausalLM", "SequenceClassification", "Seq2Seq"]
Verdict = Literal["Pass", "Fail", "Inconclusive"]
MetricName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z][a-z0-9_]*$")]

Labels = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
OpenObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""An object that the schema does not look into."""
Quantity = Annotated[
    str | int,
    Field(
        json_schema_extra={
            "pattern": r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$",
            "minimum": 0,
        }
    ),
]
"""resource.Quantity of Kubernetes, not below zero. The schema refuses others; what was stored before can be read."""
Quantities = Annotated[dict[str, Quantity], Field(max_length=16)]


class Resources(ApiModel):
    """Compute resources of one container, as in a Pod."""

    requests: Quantities | None = None
    limits: Quantities | None = None


class Toleration(ApiModel):
    """A toleration of node taints, as in a Pod."""

    key: Annotated[str, Field(max_length=316)] | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: Annotated[str, Field(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class PodOverlaySpec(ApiModel):
    """The fields of a Pod that a user may set. Anything else would weaken the pod's isolation and is refused."""

    node_selector: Labels | None = None
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    affinity: OpenObject | None = None
    image_pull_secrets: Annotated[list[ObjectReference], Field(max_length=8)] | None = None
    runtime_class_name: Name | None = None
    priority_class_name: Name | None = None
    service_account_name: Name | None = None
    """Service account for workload identity. Its token is not mounted unless the cloud's webhook asks for it."""


class PodOverlayMetadata(ApiModel):
    """Labels and annotations added to the pods."""

    labels: Labels | None = None
    annotations: Labels | None = None


class PodOverlay(ApiModel):
    """What to add to the pods that the operator makes: an allowlist, not a pod template."""

    metadata: PodOverlayMetadata | None = None
    spec: PodOverlaySpec | None = None


class ThresholdRange(ApiModel):
    """Absolute bounds that the candidate's interval must lie inside."""

    min: float | None = None
    max: float | None = None

    cel_rules = (
        Rule(
            rule="has(self.min) || has(self.max)",
            message="thresholdRange needs min, max or both",
        ),
        Rule(
            rule="!has(self.min) || !has(self.max) || self.min <= self.max",
            message="thresholdRange.min must not be greater than thresholdRange.max",
        ),
    )


class Software(ApiModel):
    """What ran: image digests and package versions."""

    trainer_image: Annotated[str, Field(max_length=1024)] | None = None
    packages: Annotated[dict[str, Annotated[str, Field(max_length=128)]], Field(max_length=64)] | None = None


class Artifact(ApiModel):
    """A stored model: where it is, and the digest that proves it is the one that was evaluated."""

    uri: Uri
    digest: Digest
    """sha256 over the sorted lines `<file sha256>  <relative path>` of all files."""
    format: Literal["Adapter", "Full", "Merged"]
    size_bytes: Annotated[int, Field(ge=0)]


class MetricResult(ApiModel):
    """One row of the comparison of candidate and baseline on the same held-out examples."""

    metric: MetricName
    candidate: float | None = None
    baseline: float | None = None
    difference: float | None = None
    """candidate - baseline, in the metric's own units."""
    low: float | None = None
    """Lower end of the 95 % interval of the difference."""
    high: float | None = None
    n: Annotated[int, Field(ge=0)] = 0
    """Held-out examples."""
    groups: Annotated[int, Field(ge=0)] = 0
    """Near-duplicate groups among them: the independent units."""
    better: Literal["Higher", "Lower"] = "Higher"
    report: bool = False
    """Shown, not judged."""
    verdict: Verdict | None = None
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
    revision: Annotated[str, Field(max_length=256)] | None = None
    digest: Digest
    licence: Annotated[str, Field(max_length=128)] | None = None
    materialized_uri: Uri | None = None
    """A safetensors copy made from it, where the original is of another format (GGUF)."""

    @property
    def loadable_uri(self) -> str:
        """Where to load the weights from."""
        return self.materialized_uri or self.uri
