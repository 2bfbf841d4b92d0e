"""The run as it was resolved when it began, kept in status.plan: an operator upgrade never changes what a job means."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError

from finetune_api.base import ApiModel, Uri, first_problem
from finetune_api.finetunejob import EvaluationMetric, Network, Source
from finetune_api.results import PrepareResult
from finetune_api.run import (
    BaselineOrder,
    CheckpointOrder,
    MemoryOrder,
    MethodOrder,
    ModelOrder,
    OffloadOrder,
    Optimisation,
    SplitOrder,
    name_of,
)
from finetune_api.shared_fields import GPU_RESOURCE, PodOverlay, Resources
from finetune_api.tasks import UsedStrategy
from finetune_operator.attempts.claims import Claim
from finetune_operator.attempts.restarts import Budget

PLAN_VERSION: Literal[1] = 1


class ResolvedPlan(ApiModel):
    """Everything that a run needs, every default resolved. Durations in seconds.

    What changes here in a way that older or newer operators would misread gets a new `plan_version`.
    """

    plan_version: Literal[1] = PLAN_VERSION
    trainer_image: str
    tries_model: bool = False
    """Whether that trainer can try the model in Prepare. One of an earlier plan refuses an order that asks for it."""
    tries_steps: bool = False
    """Whether it can try a training step, and look at the validation split, there as well."""
    served_by_vllm: bool | None = None
    """Whether the endpoint serves by vLLM. None: it does not."""
    run: Uri
    """The run's folder."""
    cache: Uri
    model: ModelOrder
    sources: list[Source]
    max_bad_rows: int
    max_truncated_fraction: float
    split: SplitOrder
    evaluation_dataset: Source | None = None
    method: MethodOrder
    optimisation: Optimisation
    checkpoint: CheckpointOrder
    nodes: int
    gpus_per_node: int
    gpu_resource: str = GPU_RESOURCE
    cpu_processes: int = 1
    """Of each node without GPUs."""
    strategy: UsedStrategy
    offload: OffloadOrder | None = None
    activation_checkpointing: bool | None = None
    """None: it is off, or Prepare chooses."""
    deepspeed: dict[str, Any] | None = None
    """What `compute.configRef` said beyond the job's fields when the run was planned."""
    memory: MemoryOrder | None = None
    """By which Prepare chooses the strategy, where it is to. None: `strategy` is it."""
    network: Network | None = None
    prepare_resources: Resources
    compute_resources: Resources
    """Of training and evaluation containers, GPUs not included."""
    pod_template: PodOverlay | None = None
    prepare_pod_template: PodOverlay | None = None
    evaluate_pod_template: PodOverlay | None = None
    secrets: list[str]
    claims: list[Claim]
    baseline: BaselineOrder | None = None
    """None: the base model as it was, known in full only after Prepare."""
    metrics: list[EvaluationMetric]
    on_inconclusive: Literal["Hold", "Reject", "Proceed"]
    max_new_tokens: int
    evaluation_batch_size: int
    evaluation_gpus: int | None = None
    """What Prepare found to be needed, once it has; a node of training may have fewer."""
    max_failures: int
    max_preemptions: int
    hang_seconds: int
    max_roll_backs: int | None = None
    """None: a run that diverges ends."""

    def allowance(self, budget: Budget) -> int:
        """How many attempts a budget pays for."""
        return {Budget.PREEMPTIONS: self.max_preemptions, Budget.FAILURES: self.max_failures}.get(budget, 0)

    @property
    def processes_per_node(self) -> int:
        """One for each GPU, else as many as were asked for."""
        return self.gpus_per_node or self.cpu_processes

    @property
    def baseline_name(self) -> str:
        """What the candidate is compared with, in words."""
        begun_with = self.model.parent.name if self.model.parent else "the base model"
        return self.baseline.name if self.baseline else begun_with

    def as_chosen(self, prepared: PrepareResult | None) -> ResolvedPlan:
        """The plan with what Prepare chose: how memory is used, where it had to, and the GPUs of the evaluation."""
        if prepared is None:
            return self
        chosen: dict[str, Any] = {"evaluation_gpus": prepared.evaluation_gpus}
        sharing = prepared.sharing
        if sharing is not None:
            chosen["activation_checkpointing"] = sharing.activation_checkpointing or None
        if sharing is not None and (self.memory is None or self.memory.strategy == "Auto"):
            offload = OffloadOrder(optimizer=True, parameters=True) if sharing.offload else None
            chosen |= {"strategy": sharing.strategy, "offload": offload}
        return self.model_copy(update=chosen)

    @property
    def machines(self) -> str:
        """The compute in words, for messages."""
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        name = name_of(self.strategy, self.offload, recomputes=bool(self.activation_checkpointing))
        shared = "" if name == "DDP" else f", {name}"
        if self.gpus_per_node:
            return f"{nodes} x {self.gpus_per_node} GPU{'' if self.gpus_per_node == 1 else 's'}{shared}"
        processes = "" if self.cpu_processes == 1 else f" x {self.cpu_processes} processes"
        return f"{nodes}{processes} (CPU){shared}"


def read_plan(stored: dict[str, Any]) -> ResolvedPlan | str:
    """A stored plan, or why this operator cannot follow it."""
    version = stored.get("planVersion")
    if version != PLAN_VERSION:
        return f"the plan has version {version}, this operator reads version {PLAN_VERSION}"
    try:
        return ResolvedPlan.model_validate(stored)
    except ValidationError as error:
        return f"the plan cannot be read by this operator: {first_problem(error)}"
