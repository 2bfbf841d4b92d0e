"""How a version was evaluated, kept in its ModelVersion: an endpoint can compare it again when its job is long gone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from finetune_api.base import ApiModel, Uri
from finetune_api.finetunejob import EvaluationMetric
from finetune_api.modelversion import ModelVersion
from finetune_api.run import BaselineOrder, EvaluateRun, Identity, Locations, ModelOrder, ParentOrder
from finetune_api.shared_fields import GPU_RESOURCE, Artifact, PodOverlay, ResolvedModel, Resources

EVALUATION_PLAN_VERSION: Literal[1] = 1


class EvaluationPlan(ApiModel):
    """Everything about an evaluation but the models, every default resolved.

    What changes here in a way that older or newer operators would misread gets a new `plan_version`.
    """

    plan_version: Literal[1] = EVALUATION_PLAN_VERSION
    run: Uri
    """The run's folder: the held-out examples are there."""
    cache: Uri
    metrics: list[EvaluationMetric]
    on_inconclusive: Literal["Hold", "Reject", "Proceed"]
    max_length: int
    max_new_tokens: int
    batch_size: int
    precision: Literal["Auto", "FP32", "BF16"]
    seed: int
    gpus: int
    gpu_resource: str = GPU_RESOURCE
    resources: Resources
    """Of the container, GPUs not included."""
    pod_template: PodOverlay | None = None
    secrets: list[str] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)
    """Kueue's, of the job."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Kueue's, of the job."""


def read_evaluation_plan(stored: dict[str, Any] | None) -> EvaluationPlan | None:
    """A stored plan; None where there is none that this operator can follow."""
    try:
        return None if stored is None else EvaluationPlan.model_validate(stored)
    except ValidationError:
        return None


def evaluation_order(
    *,
    identity: Identity,
    locations: Locations,
    plan: EvaluationPlan,
    model: ModelOrder,
    base: ResolvedModel,
    candidate: Artifact,
    labels: list[str] | None,
    data_digest: str,
    baseline: BaselineOrder,
    output: str | None = None,
) -> EvaluateRun:
    """The run file of an evaluation. `output`: where to put what it makes; None: where a job's own evaluation is."""
    return EvaluateRun(
        identity=identity,
        locations=locations,
        model=model,
        base=base,
        candidate=candidate,
        labels=labels,
        data_digest=data_digest,
        baseline=baseline,
        metrics=plan.metrics,
        max_length=plan.max_length,
        max_new_tokens=plan.max_new_tokens,
        batch_size=plan.batch_size,
        precision=plan.precision,
        seed=plan.seed,
        output=output,
    )


def baseline_order(version: ModelVersion) -> BaselineOrder:
    """How to compare with a ModelVersion."""
    spec = version.spec
    return BaselineOrder(
        name=version.metadata.name,
        uid=version.metadata.uid,
        artifact=spec.artifact,
        base=spec.base,
        data_manifest=spec.data.manifest,
        labels=spec.labels,
    )


def parent_order(version: ModelVersion) -> ParentOrder:
    """How to go on from a ModelVersion."""
    spec = version.spec
    return ParentOrder(
        name=version.metadata.name,
        uid=version.metadata.uid,
        artifact=spec.artifact,
        base=spec.base,
        labels=spec.labels,
        data_manifest=spec.data.manifest,
    )
