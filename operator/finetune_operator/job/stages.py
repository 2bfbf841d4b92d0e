"""The stages of a run: how large each is, and the orders that its containers get."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.finetunejob import STAGES, FineTuneJob, FineTuneJobStatus, Phase, StageName
from finetune_api.metrics import metrics_of
from finetune_api.results import EvaluateResult, Failure, PrepareResult, TrainResult, result_adapter
from finetune_api.run import BaselineOrder, EvaluateRun, Identity, Locations, PrepareRun, TrainRun
from finetune_api.shared_fields import Resources
from finetune_operator.config import OperatorConfig
from finetune_operator.job.evaluation import evaluation_order, evaluation_plan
from finetune_operator.job.plan import ResolvedPlan

PHASE_OF_STAGE: dict[StageName, Phase] = {"Prepare": "Preparing", "Train": "Training", "Evaluate": "Evaluating"}
CONDITION_OF_STAGE: dict[StageName, str] = {"Prepare": "Prepared", "Train": "Trained", "Evaluate": "Evaluated"}
GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True, kw_only=True)
class StageSize:
    """What a stage asks of the cluster."""

    pods: int
    gpus: int
    """GPUs of each pod."""
    resources: Resources


def size_of(*, stage: StageName, plan: ResolvedPlan) -> StageSize:
    """How large a stage is: data are prepared on one CPU, models compared on one GPU (where training has any)."""
    if stage == "Prepare":
        return StageSize(pods=1, gpus=0, resources=plan.prepare_resources)
    if stage == "Train":
        return StageSize(pods=plan.nodes, gpus=plan.gpus_per_node, resources=plan.compute_resources)
    return StageSize(pods=1, gpus=min(1, plan.gpus_per_node), resources=plan.compute_resources)


def stage_after(stage: StageName) -> StageName | None:
    """The next stage, None after the last."""
    position = STAGES.index(stage) + 1
    return STAGES[position] if position < len(STAGES) else None


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the stages that are complete have reported."""

    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    evaluate: EvaluateResult | None = None


def recorded_results(status: FineTuneJobStatus) -> Results:
    """The results in a status. Raises pydantic.ValidationError for one that was tampered with."""
    found: dict[str, PrepareResult | TrainResult | EvaluateResult | Failure] = {
        stage.name: result_adapter.validate_python(stage.result) for stage in status.stages if stage.result is not None
    }
    prepare, train, evaluate = found.get("Prepare"), found.get("Train"), found.get("Evaluate")
    return Results(
        prepare=prepare if isinstance(prepare, PrepareResult) else None,
        train=train if isinstance(train, TrainResult) else None,
        evaluate=evaluate if isinstance(evaluate, EvaluateResult) else None,
    )


def order_of(
    *,
    stage: StageName,
    attempt: int,
    job: FineTuneJob,
    plan: ResolvedPlan,
    results: Results,
    config: OperatorConfig,
) -> PrepareRun | TrainRun | EvaluateRun:
    """The run file of an attempt. Raises ValueError where the results that it builds on are not recorded."""
    identity = Identity(namespace=job.metadata.namespace, job=job.metadata.name, uid=job.metadata.uid, attempt=attempt)
    locations = Locations(
        run=plan.run,
        cache=plan.cache,
        allowed_roots=list(config.allowed_roots),
        mounts={claim.name: mount_path(claim=claim.name, config=config) for claim in plan.claims},
    )
    if stage == "Prepare":
        return _prepare_run(identity=identity, locations=locations, plan=plan)
    if results.prepare is None:
        raise ValueError("the result of Prepare is not recorded")
    if stage == "Train":
        return _train_run(identity=identity, locations=locations, plan=plan, prepare=results.prepare)
    if results.train is None:
        raise ValueError("the result of Train is not recorded")
    return evaluation_order(
        identity=identity,
        locations=locations,
        plan=evaluation_plan(job=job, plan=plan),
        model=plan.model,
        base=results.prepare.base,
        candidate=results.train.artifact,
        labels=results.prepare.labels,
        data_digest=results.prepare.data_digest,
        baseline=plan.baseline or BaselineOrder(name="Base", base=results.prepare.base),
    )


def mount_path(*, claim: str, config: OperatorConfig) -> str:
    """Where a claim is mounted in the containers."""
    return f"{config.claim_mount_root}/{claim}"


def _prepare_run(*, identity: Identity, locations: Locations, plan: ResolvedPlan) -> PrepareRun:
    return PrepareRun(
        identity=identity,
        locations=locations,
        model=plan.model,
        sources=plan.sources,
        max_bad_rows=plan.max_bad_rows,
        max_truncated_fraction=plan.max_truncated_fraction,
        max_length=plan.optimisation.max_length,
        split=plan.split,
        evaluation_dataset=plan.evaluation_dataset,
        max_new_tokens=plan.max_new_tokens if plan.tries_model and _compares_answers(plan) else None,
        method=plan.method if plan.tries_model else None,
        packing=plan.optimisation.packing if plan.tries_model else None,
    )


def _compares_answers(plan: ResolvedPlan) -> bool:
    known = metrics_of(plan.model.task)
    return any(known[metric.name].from_answers for metric in plan.metrics if metric.name in known)


def _train_run(*, identity: Identity, locations: Locations, plan: ResolvedPlan, prepare: PrepareResult) -> TrainRun:
    return TrainRun(
        identity=identity,
        locations=locations,
        model=plan.model,
        base=prepare.base,
        data_digest=prepare.data_digest,
        method=plan.method,
        optimisation=plan.optimisation,
        checkpoint=plan.checkpoint,
        nodes=plan.nodes,
        processes_per_node=plan.processes_per_node,
        strategy=plan.strategy,
    )
