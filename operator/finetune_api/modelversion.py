"""ModelVersion: the immutable record of what a run produced, rejected runs included."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api import API_VERSION
from finetune_api.base import (
    ApiModel,
    Conditions,
    Digest,
    Name,
    ObjectMeta,
    ObjectReference,
    Rule,
    Uri,
    VersionReference,
)
from finetune_api.shared_fields import Artifact, MetricResult, OpenObject, ResolvedModel, Software, Task, Verdict
from finetune_api.tasks import TASKS


class RowCounts(ApiModel):
    """Examples per split."""

    train: Annotated[int, Field(ge=0)]
    """Examples that were learned from."""
    validation: Annotated[int, Field(ge=0)]
    """Examples that were looked at during training, and not learned from."""
    test: Annotated[int, Field(ge=0)]
    """Examples held out for the comparison."""


class DataSource(ApiModel):
    """A source as it was read."""

    name: str
    """Its name in the job."""
    uri: Uri
    """Where it was read from."""
    digest: Digest | None = None
    """sha256 of what was read."""


class DataRecord(ApiModel):
    """The examples that the version was trained on."""

    digest: Digest
    """sha256 of the snapshot: equal for equal content."""
    manifest: Uri | None = None
    """Where the digests of all examples by split are, so that a later evaluation can prove it holds none of them out."""
    rows: RowCounts
    sources: Annotated[list[DataSource], Field(max_length=32)] = Field(default_factory=list)
    """The sources, each as it was read."""


class BaselineRecord(ApiModel):
    """What the version was compared with."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """The name of a ModelVersion, or `Base`."""
    uid: str | None = None
    """The ModelVersion's UID; unset for the base model."""
    digest: Digest
    """sha256 over the files of the model that was compared with."""


class EvaluationRecord(ApiModel):
    """The verdict and what it rests on."""

    verdict: Verdict
    """Pass: proven better or no worse than allowed. Fail: proven unacceptable. Inconclusive: neither."""
    accepted: bool | None = None
    """Whether the job's policy lets it go on: an Inconclusive one does with onInconclusive Proceed. None: if it passed.
    """
    held: bool | None = None
    """Undecided under onInconclusive Hold: it goes on where a person approves it at an endpoint."""
    report: Uri | None = None
    """The HTML report."""
    results: Annotated[list[MetricResult], Field(max_length=32)] = Field(default_factory=list)
    """One row a metric."""
    precision: Literal["FP32", "BF16"] | None = None
    """What the model computed in when it was evaluated: it is served in the same. None: recorded before there was this
    field; then servers compute in BF16 on a GPU that has it, else in FP32."""
    plan: OpenObject | None = None
    """All that it takes to compare the version with another one later, defaults resolved. None: that cannot be done."""


class JobReference(ApiModel):
    """The FineTuneJob that made it."""

    name: Name
    """The job's name."""
    uid: str
    """The job's UID: its name may be used again."""


class ConfigRecord(ApiModel):
    """A text in a ConfigMap, as it was read."""

    name: str
    """Of the ConfigMap."""
    key: str
    """Of the text in it."""
    digest: Digest
    """sha256 of what it says beyond the job's fields."""


class Lineage(ApiModel):
    """Where the version comes from."""

    job: JobReference
    parent: VersionReference | None = None
    """The version that training continued from."""
    deepspeed: ConfigRecord | None = None
    """The DeepSpeed configuration (compute.configRef) by which it was trained."""


class ModelVersionSpec(ApiModel):
    """Immutable."""

    endpoint_ref: ObjectReference | None = None
    artifact: Artifact
    base: ResolvedModel
    task: Task
    """What the model does."""
    method: OpenObject
    """As trained, defaults resolved."""
    training: OpenObject
    """Optimisation as it was done, defaults resolved; and how processes shared the model (`strategy`)."""
    labels: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=4096)] | None = None
    """The classes of a classifier, in the order of its outputs."""
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that the version reads at once: of a classifier a text's, as evaluated; of Seq2Seq a prompt's, and as many
    for an answer; else those of prompt and answer together. Servers keep to it. None: no limit known, or recorded
    before there was this field."""
    data: DataRecord
    baseline: BaselineRecord
    evaluation: EvaluationRecord
    lineage: Lineage
    software: Software | None = None

    @property
    def limit(self) -> int | None:
        """What servers keep to; versions older than `context_tokens` say how long their texts were."""
        trained = self.training.get("maxLength") if TASKS[self.task].cuts_texts else None
        return self.context_tokens or (trained if isinstance(trained, int) else None)

    cel_rules = (Rule(rule="self == oldSelf", message="a ModelVersion is immutable; a new run makes a new version"),)


class ModelVersionStatus(ApiModel):
    """What was observed."""

    observed_generation: int | None = None
    """The metadata.generation that the status is about."""
    conditions: Conditions = Field(default_factory=list)
    """None are set yet."""


class ModelVersion(ApiModel):
    """What a run produced: artifact, digests, data, metrics with intervals, verdict and lineage."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["ModelVersion"] = "ModelVersion"
    metadata: ObjectMeta
    spec: ModelVersionSpec
    status: ModelVersionStatus = ModelVersionStatus()
