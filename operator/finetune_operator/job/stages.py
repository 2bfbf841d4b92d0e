"""The stages of a run, a record each: how large, with which orders, and how it is shown; and what they hand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus, Phase, StageName
from finetune_api.metrics import metrics_of
from finetune_api.results import EvaluateResult, PrepareResult, TrainResult, result_adapter
from finetune_api.run import BaselineOrder, EvaluateRun, Identity, Locations, PrepareRun, TrainRun
from finetune_api.shared_fields import PodOverlay, ResolvedModel
from finetune_operator.attempts.evaluation import EvaluationPlan, evaluation_order
from finetune_operator.attempts.manifests import Size
from finetune_operator.core.names import of_kueue
from finetune_operator.job.plan import ResolvedPlan, read_plan


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the stages that are complete have reported."""

    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    evaluate: EvaluateResult | None = None


def recorded_results(status: FineTuneJobStatus) -> Results:
    """The results in a status. Raises pydantic.ValidationError for one that was tampered with."""
    found = [result_adapter.validate_python(stage.result) for stage in status.stages if stage.result is not None]
    return Results(
        prepare=next((each for each in found if isinstance(each, PrepareResult)), None),
        train=next((each for each in found if isinstance(each, TrainResult)), None),
        evaluate=next((each for each in found if isinstance(each, EvaluateResult)), None),
    )


def recorded_plan(status: FineTuneJobStatus) -> ResolvedPlan | str | None:
    """The plan with what Prepare chose; or why this operator cannot follow it; None before there is one."""
    plan = read_plan(status.plan) if status.plan is not None else None
    return plan.as_chosen(recorded_results(status).prepare) if isinstance(plan, ResolvedPlan) else plan


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """What the orders of an attempt are made of."""

    job: FineTuneJob
    plan: ResolvedPlan
    results: Results
    identity: Identity
    locations: Locations

    @property
    def prepared(self) -> PrepareResult:
        """The result of Prepare. Raises ValueError where it is not recorded."""
        if self.results.prepare is None:
            raise ValueError("the result of Prepare is not recorded")
        return self.results.prepare


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run."""

    name: StageName
    phase: Phase
    """Of the job while it lasts."""
    condition: str
    """That is true once it is complete."""
    size: Callable[[ResolvedPlan], Size]
    overlay: Callable[[ResolvedPlan], PodOverlay | None]
    """What is added to its pods."""
    activity: Callable[[ResolvedPlan], str]
    """What it does, in words that stay the same while it does it."""
    order: Callable[[Ordering], PrepareRun | TrainRun | EvaluateRun]
    """The run file. Raises ValueError where a result that it builds on is not recorded."""
    trains: bool = False
    """It has a gang of processes that report and leave checkpoints."""


def _prepare(ordering: Ordering) -> PrepareRun:
    plan = ordering.plan
    return PrepareRun(
        identity=ordering.identity,
        locations=ordering.locations,
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
        strategy=plan.strategy if plan.deepspeed is not None else None,
        offload=plan.offload if plan.deepspeed is not None else None,
        deepspeed=plan.deepspeed,
        memory=plan.memory,
        optimisation=plan.optimisation if plan.tries_steps else None,
        served_by_vllm=plan.served_by_vllm,
    )


def _compares_answers(plan: ResolvedPlan) -> bool:
    known = metrics_of(plan.model.task)
    return any(known[metric.name].from_answers for metric in plan.metrics if metric.name in known)


def _train(ordering: Ordering) -> TrainRun:
    plan, prepared = ordering.plan, ordering.prepared
    return TrainRun(
        identity=ordering.identity,
        locations=ordering.locations,
        model=plan.model,
        base=prepared.base,
        data_digest=prepared.data_digest,
        method=plan.method,
        optimisation=plan.optimisation,
        checkpoint=plan.checkpoint,
        nodes=plan.nodes,
        processes_per_node=plan.processes_per_node,
        strategy=plan.strategy,
        offload=plan.offload,
        deepspeed=plan.deepspeed,
        max_roll_backs=plan.max_roll_backs,
        activation_checkpointing=plan.activation_checkpointing,
    )


def _evaluate(ordering: Ordering) -> EvaluateRun:
    plan, prepared = ordering.plan, ordering.prepared
    if ordering.results.train is None:
        raise ValueError("the result of Train is not recorded")
    return evaluation_order(
        identity=ordering.identity,
        locations=ordering.locations,
        plan=evaluation_plan(job=ordering.job, plan=plan),
        model=plan.model,
        base=prepared.base,
        candidate=ordering.results.train.artifact,
        labels=prepared.labels,
        data_digest=prepared.data_digest,
        baseline=plan.baseline or _begun_with(plan, base=prepared.base),
    )


def _begun_with(plan: ResolvedPlan, *, base: ResolvedModel) -> BaselineOrder:
    """What the model was before it was trained."""
    parent = plan.model.parent
    if parent is None:
        return BaselineOrder(name="Base", base=base)
    kept = {"artifact": parent.artifact, "labels": parent.labels} if parent.keep else {}
    return BaselineOrder(name=parent.name, uid=parent.uid, base=base, **kept)


def evaluation_plan(*, job: FineTuneJob, plan: ResolvedPlan) -> EvaluationPlan:
    """The part of a run's plan that an evaluation needs: its ModelVersion keeps it, to be compared again."""
    return EvaluationPlan(
        run=plan.run,
        cache=plan.cache,
        metrics=plan.metrics,
        on_inconclusive=plan.on_inconclusive,
        max_length=plan.optimisation.max_length,
        max_new_tokens=plan.max_new_tokens,
        batch_size=plan.evaluation_batch_size,
        precision=plan.optimisation.precision,
        seed=plan.optimisation.seed,
        gpus=EVALUATE.size(plan).gpus,
        gpu_resource=plan.gpu_resource,
        resources=plan.compute_resources,
        pod_template=EVALUATE.overlay(plan),
        secrets=plan.secrets,
        labels=of_kueue(job.metadata.labels),
        annotations=of_kueue(job.metadata.annotations),
    )


PREPARE = Stage(
    name="Prepare",
    phase="Preparing",
    condition="Prepared",
    size=lambda plan: Size(pods=1, gpus=0, resources=plan.prepare_resources),
    overlay=lambda plan: plan.prepare_pod_template or plan.pod_template,
    activity=lambda _: "reading and checking the data and the base model",
    order=_prepare,
)
TRAIN = Stage(
    name="Train",
    phase="Training",
    condition="Trained",
    size=lambda plan: Size(
        pods=plan.nodes,
        gpus=plan.gpus_per_node,
        resources=plan.compute_resources,
        gpu_resource=plan.gpu_resource,
        devices=(plan.network.resources if plan.network else None) or {},
        processes=plan.processes_per_node,
    ),
    overlay=lambda plan: plan.pod_template,
    activity=lambda plan: f"training on {plan.machines}",
    order=_train,
    trains=True,
)
EVALUATE = Stage(
    name="Evaluate",
    phase="Evaluating",
    condition="Evaluated",
    size=lambda plan: Size(
        pods=1,
        gpus=min(plan.evaluation_gpus or 1, plan.gpus_per_node),
        resources=plan.compute_resources,
        gpu_resource=plan.gpu_resource,
    ),
    overlay=lambda plan: plan.evaluate_pod_template or plan.pod_template,
    activity=lambda plan: f"comparing the candidate with {plan.baseline_name} on the held-out examples",
    order=_evaluate,
)
ORDERED: tuple[Stage, ...] = (PREPARE, TRAIN, EVALUATE)
"""As a run goes through them."""


def stage_of(name: StageName) -> Stage:
    """The record of a stage."""
    return next(stage for stage in ORDERED if stage.name == name)


def stage_after(name: StageName) -> Stage | None:
    """The next stage, None after the last."""
    return next(iter(ORDERED[ORDERED.index(stage_of(name)) + 1 :]), None)
