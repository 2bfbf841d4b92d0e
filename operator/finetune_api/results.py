"""What a container says when it ends: the termination message (JSON, at most 4 KiB) and the exit code.

The full reports are in the run's folder; the message holds what the operator must know to go on.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from finetune_api.base import ApiModel, Digest, Uri
from finetune_api.modelversion import DataSource, RowCounts
from finetune_api.run import OffloadOrder, name_of
from finetune_api.shared_fields import Artifact, MetricResult, ResolvedModel, Verdict
from finetune_api.tasks import UsedStrategy

MAXIMUM_MESSAGE_BYTES = 4096


class ExitCode(IntEnum):
    """Exit codes of our containers (sysexits.h where one fits)."""

    DONE = 0
    BAD_DATA = 65
    INPUT_NOT_FOUND = 66
    INTERNAL_ERROR = 70
    CANNOT_WRITE = 73
    STOPPED_AFTER_CHECKPOINT = 75
    BAD_CONFIGURATION = 78


PERMANENT_EXIT_CODES: frozenset[int] = frozenset(
    {ExitCode.BAD_DATA, ExitCode.INPUT_NOT_FOUND, ExitCode.BAD_CONFIGURATION}
)
"""Trying again cannot help."""


class DataSummary(ApiModel):
    """What prepare saw."""

    rows_read: int
    bad_rows: int
    duplicate_rows: int
    near_duplicate_groups: int
    rows: RowCounts
    token_length_p50: int
    token_length_p95: int
    token_length_max: int
    truncated_fraction: float


class Sharing(ApiModel):
    """How the processes of Train share the model and keep activations, where the job says Auto."""

    strategy: UsedStrategy
    offload: bool = False
    """Whether weights and moments wait in the host's memory."""
    activation_checkpointing: bool = False
    because: Annotated[str, Field(max_length=600)]
    """The arithmetic."""

    @property
    def name(self) -> str:
        """In words."""
        return name_of(self.strategy, OffloadOrder(optimizer=self.offload), recomputes=self.activation_checkpointing)


class PrepareResult(ApiModel):
    """Data and base model are ready."""

    stage: Literal["Prepare"] = "Prepare"
    data_digest: Digest
    manifest: Uri
    summary: DataSummary
    sources: list[DataSource] = Field(default_factory=list)
    labels: list[str] | None = None
    """Classes in the order of the classifier's outputs; where too long for the message, in the manifest only."""
    base: ResolvedModel
    remarks: list[str] = Field(default_factory=list)
    """What a person should know before training; where too long for the message, in the log and the manifest only."""
    context_tokens: int | None = None
    """Tokens that the base model can read at once. None: no limit known."""
    sharing: Sharing | None = None
    """None: the job says it all, or the order is of an earlier operator."""
    evaluation_gpus: Annotated[int, Field(ge=1)] | None = None
    """Over which the model, as it is evaluated, has to be spread. None: it is on CPUs, or the order is of an earlier
    operator."""
    reused: bool = False
    """An earlier attempt's output was complete for the same input and was taken."""


class TrainResult(ApiModel):
    """The model is saved, verified and loads."""

    stage: Literal["Train"] = "Train"
    artifact: Artifact
    steps: int
    stopped_early: bool = False
    train_loss: float | None = None
    validation_loss: float | None = None
    tokens: int = 0
    """Non-padding tokens seen."""
    seconds: float = 0
    resumed_from_step: int | None = None
    rolled_back_to: list[int] | None = None
    """Steps that it went back to because the loss was no number any more, with half the learning rate each time."""
    trainable_parameters: int = 0
    total_parameters: int = 0
    strategy: str | None = None
    """How processes shared the model, and how many, in words. None: from an image that does not say."""
    deepspeed: Digest | None = None
    """Of what compute.configRef said to DeepSpeed beyond the job's fields."""
    base_bits: int | None = None
    """To which the base was quantised while it was trained on; it is evaluated and served as it is."""
    packages: dict[str, str] = Field(default_factory=dict)
    reused: bool = False


class EvaluateResult(ApiModel):
    """The comparison, and the verdict that its rows give."""

    stage: Literal["Evaluate"] = "Evaluate"
    verdict: Verdict
    results: list[MetricResult]
    report: Uri
    examples: int
    baseline_digest: Digest
    leaked_examples: int = 0
    """Held-out examples left out because the baseline was trained on them."""
    reused: bool = False
    precision: Literal["FP32", "BF16"] | None = None
    """What the models computed in. None: from an image that does not say."""


class Failure(ApiModel):
    """The stage ended without a result."""

    stage: Literal["Failure"] = "Failure"
    reason: Annotated[str, Field(max_length=64)]
    """CamelCase, for a condition: one of `stage_reasons`."""
    message: Annotated[str, Field(max_length=3000)]
    checkpoint_step: int | None = None
    """Where the next attempt goes on."""


Result = Annotated[PrepareResult | TrainResult | EvaluateResult | Failure, Field(discriminator="stage")]
result_adapter: TypeAdapter[PrepareResult | TrainResult | EvaluateResult | Failure] = TypeAdapter(Result)
