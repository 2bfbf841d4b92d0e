"""From a job's spec to its plan: every default is resolved here, once, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from finetune_api.base import size_problem
from finetune_api.finetunejob import (
    Compute,
    EvaluationMetric,
    FineTuneJob,
    FineTuneJobSpec,
    LoRA,
    Method,
    Offload,
    Quantisation,
    Source,
    Split,
    Training,
)
from finetune_api.metrics import metric_problems
from finetune_api.run import (
    BaselineOrder,
    CheckpointOrder,
    MemoryOrder,
    MethodOrder,
    ModelOrder,
    OffloadOrder,
    Optimisation,
    ParentOrder,
    SplitOrder,
)
from finetune_api.shared_fields import GPU_RESOURCE
from finetune_api.tasks import METHODS, TASKS, Scored
from finetune_operator.attempts.claims import Claim, claims_behind
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.quantities import amount
from finetune_operator.core.reasons import Reason
from finetune_operator.job.plan import ResolvedPlan

DEFAULT_SPLIT = Split(train=0.8, validation=0.1, test=0.1, strategy="GroupHash")
_DEFAULT_BATCH = 16
_VERSION = "version://"
_LARGEST_MICRO_BATCH = 8
_EVALUATION_BATCH = 16
T = TypeVar("T")
_DEFAULT_METRICS: dict[Scored, tuple[EvaluationMetric, ...]] = {
    "Text": (EvaluationMetric(name="loss", min_improvement=0.0),),
    "Class": (
        EvaluationMetric(name="accuracy", max_regression=0.01),
        EvaluationMetric(name="f1", report=True),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a job can never run, whatever is tried. `message` names the field, the reason and the way out."""

    reason: str
    message: str


def unsupported(spec: FineTuneJobSpec) -> str | None:
    """What a newer API allows and this operator cannot do, in words; None where it can do all.

    The CRD of this version refuses the same; with a newer CRD installed first, the job waits for the newer operator.
    """
    wishes = {
        "spec.artifacts.policy: Delete": spec.artifacts.policy == "Delete",
    }
    return next((wish for wish, wished in wishes.items() if wished), None)


def refusal(*, job: FineTuneJob, config: OperatorConfig) -> Refusal | None:
    """The first reason that makes the job impossible, or None."""
    spec = job.spec
    problem = size_problem(spec)
    if problem:
        return Refusal(reason=Reason.TOO_LARGE, message=problem)
    for field, uri in uris_of(spec).items():
        problem = refusal_of(uri=uri, allowed_roots=config.allowed_roots)
        if problem:
            return Refusal(reason=Reason.URI_NOT_ALLOWED, message=f"{field}: {problem}")
    problem = _batch_problem(spec) or _pattern_problem(spec)
    if problem:
        return Refusal(reason=Reason.INVALID_SPEC, message=problem)
    problems = metric_problems(_metrics(spec), task=spec.model.task)
    return Refusal(reason=Reason.INVALID_SPEC, message=f"spec.{problems[0]}") if problems else None


def resolve(
    *, job: FineTuneJob, config: OperatorConfig, baseline: BaselineOrder | None, parent: ParentOrder | None = None
) -> ResolvedPlan:
    """The plan of a job that `refusal` lets through. `baseline`: the ModelVersion to beat; None: the base model.
    `parent`: the one that `version://` names.
    """
    spec = job.spec
    if parent is not None and spec.method.parent == "Keep":
        parent = parent.model_copy(update={"keep": True})
    root, memory = spec.artifacts.uri.rstrip("/"), _memory(spec)
    compute, evaluation, policy = spec.compute, spec.evaluation, spec.failure_policy
    dataset = evaluation.dataset if evaluation else None
    return ResolvedPlan(
        trainer_image=config.trainer_image,
        tries_model=True,
        tries_steps=True,
        run=f"{root}/{job.metadata.namespace}/{job.metadata.name}-{job.metadata.uid[:8]}",
        cache=f"{root}/cache",
        model=_model(spec=spec, config=config, parent=parent),
        sources=[_source(source) for source in spec.data.sources],
        max_bad_rows=spec.data.max_bad_rows or 0,
        max_truncated_fraction=_or(spec.data.max_truncated_fraction, 0.01),
        split=SplitOrder(fractions=_split(spec.data.split), salt=_salt(job)),
        evaluation_dataset=Source(name="evaluation", uri=dataset.uri, format=dataset.format or "Auto", weight=1.0)
        if dataset
        else None,
        method=_method(spec.method),
        optimisation=_optimisation(spec),
        checkpoint=_checkpoint(spec),
        nodes=_nodes(spec),
        gpus_per_node=_gpus(spec),
        gpu_resource=(compute.gpu_resource if compute else None) or GPU_RESOURCE,
        cpu_processes=(compute.processes_per_node if compute else None) or 1,
        strategy="DDP" if compute is None or compute.strategy in (None, "Auto") else compute.strategy,
        offload=_offload(compute.offload) if compute and compute.offload else None,
        activation_checkpointing=memory.activation_checkpointing == "Always" or None,
        memory=memory,
        network=compute.network if compute else None,
        prepare_resources=config.prepare_resources,
        compute_resources=(compute.resources if compute else None) or config.compute_resources,
        pod_template=compute.pod_template if compute else None,
        prepare_pod_template=spec.data.pod_template,
        evaluate_pod_template=spec.evaluation.pod_template if spec.evaluation else None,
        secrets=_secrets(spec),
        claims=claims_of(spec, also=_of_versions(baseline, parent)),
        baseline=baseline,
        metrics=_metrics(spec),
        on_inconclusive=(evaluation.on_inconclusive if evaluation else None) or "Hold",
        max_new_tokens=evaluation.generation.max_new_tokens if evaluation and evaluation.generation else 64,
        evaluation_batch_size=_EVALUATION_BATCH,
        max_failures=_or(policy.max_failures if policy else None, 3),
        max_preemptions=_or(policy.max_preemptions if policy else None, 100),
        hang_seconds=_or(policy.hang_seconds if policy else None, 900),
        max_roll_backs=policy.max_roll_backs or 2 if policy and policy.on_divergence == "RollBack" else None,
    )


def _or(value: T | None, default: T) -> T:
    """The value where one is set, 0 included."""
    return default if value is None else value


def _model(*, spec: FineTuneJobSpec, config: OperatorConfig, parent: ParentOrder | None) -> ModelOrder:
    return ModelOrder(
        uri=spec.model.uri,
        revision=spec.model.revision,
        task=spec.model.task,
        allowed_licences=list(spec.model.licence.allow) if spec.model.licence else None,
        trust_remote_code=config.trust_remote_code,
        parent=parent,
    )


def _source(source: Source) -> Source:
    return Source(name=source.name, uri=source.uri, format=source.format or "Auto", weight=_or(source.weight, 1.0))


def _split(split: Split | None) -> Split:
    if split is None:
        return DEFAULT_SPLIT
    strategy = split.strategy or "GroupHash"
    by = (split.by or "label") if strategy == "Stratified" else None
    return Split(train=split.train, validation=split.validation, test=split.test, strategy=strategy, by=by)


def _salt(job: FineTuneJob) -> str:
    """All runs of an endpoint must agree on who is held out; without an endpoint, all runs of the namespace do."""
    endpoint = job.spec.endpoint_ref.name if job.spec.endpoint_ref else ""
    return f"{job.metadata.namespace}/{endpoint}"


def _method(method: Method) -> MethodOrder:
    quantises = METHODS[method.type].quantises
    return MethodOrder(
        type=method.type,
        lora=_lora(method.lora),
        quantisation=method.quantisation or (Quantisation(bits=4) if quantises else None),
        freeze=method.freeze,
    )


def _lora(lora: LoRA | None) -> LoRA | None:
    if lora is None:
        return None
    return LoRA(
        rank=lora.rank,
        alpha=_or(lora.alpha, 2.0 * lora.rank),
        dropout=_or(lora.dropout, 0.0),
        target_modules=lora.target_modules or ["all-linear"],
    )


def _offload(wanted: Offload) -> OffloadOrder:
    return OffloadOrder(optimizer=bool(wanted.optimizer), parameters=bool(wanted.parameters))


def _memory(spec: FineTuneJobSpec) -> MemoryOrder:
    compute, optimisation = spec.compute or Compute(), _optimisation(spec)
    limit = ((compute.resources and compute.resources.limits) or {}).get("memory")
    return MemoryOrder(
        strategy=compute.strategy or "Auto",
        offload=_offload(compute.offload) if compute.offload else None,
        nodes=_nodes(spec),
        processes_per_node=_processes(spec) // _nodes(spec),
        gpus=_gpus(spec) > 0,
        gpu_memory=_bytes(compute.gpu_memory),
        memory_limit=_bytes(limit),
        rows=1 if optimisation.packing else optimisation.micro_batch_size,
        precision=optimisation.precision,
        activation_checkpointing=(spec.training and spec.training.activation_checkpointing) or "Auto",
    )


def _bytes(quantity: str | int | None) -> float | None:
    found = None if quantity is None else amount(quantity)
    return None if found is None else float(found)


def _checkpoint(spec: FineTuneJobSpec) -> CheckpointOrder:
    wanted = spec.checkpoint
    return CheckpointOrder(
        every_steps=(wanted.every_steps if wanted else None) or 100,
        keep=(wanted.keep if wanted else None) or 2,
        resume=(wanted.resume if wanted else None) or "Latest",
    )


def _optimisation(spec: FineTuneJobSpec) -> Optimisation:
    training = spec.training or Training()
    batch = _global_batch(spec)
    share = batch // _processes(spec)
    return Optimisation(
        epochs=training.epochs if training.max_steps or training.epochs else 3.0,
        max_steps=training.max_steps,
        learning_rate=_or(training.learning_rate, METHODS[spec.method.type].learning_rate),
        scheduler=training.scheduler or "Cosine",
        warmup_fraction=_or(training.warmup_fraction, 0.03),
        weight_decay=_or(training.weight_decay, 0.0),
        max_grad_norm=_or(training.max_grad_norm, 1.0),
        global_batch_size=batch,
        micro_batch_size=training.micro_batch_size
        or max(size for size in range(1, _LARGEST_MICRO_BATCH + 1) if share % size == 0),
        max_length=_or(training.max_length, 1024),
        packing=bool(training.packing),
        precision=training.precision or "Auto",
        seed=training.seed or 0,
        early_stopping_patience=training.early_stopping.patience if training.early_stopping else None,
    )


def _global_batch(spec: FineTuneJobSpec) -> int:
    """As asked for; else the smallest number from 16 up that all processes can share evenly."""
    wanted = spec.training.global_batch_size if spec.training else None
    processes = _processes(spec)
    return wanted or -(-_DEFAULT_BATCH // processes) * processes


def _batch_problem(spec: FineTuneJobSpec) -> str | None:
    batch, processes = _global_batch(spec), _processes(spec)
    if batch % processes:
        return (
            f"spec.training.globalBatchSize: {batch} examples cannot be shared evenly by {processes} processes "
            f"(compute.nodes x gpusPerNode, or processesPerNode on CPUs); use a multiple of {processes}"
        )
    micro, share = (spec.training.micro_batch_size if spec.training else None), batch // processes
    if micro and share % micro:
        return (
            f"spec.training.microBatchSize: {micro} does not divide the {share} examples that each of {processes} "
            f"processes has of a global batch; use a divisor of {share}"
        )
    return None


def _pattern_problem(spec: FineTuneJobSpec) -> str | None:
    for number, pattern in enumerate((spec.method.freeze and spec.method.freeze.patterns) or ()):
        try:
            re.compile(pattern)
        except re.error as error:
            return (
                f"spec.method.freeze.patterns[{number}]: {pattern} is no regular expression of Python: {error}; write a"
                " backslash before a character that stands for itself"
            )
    return None


def _processes(spec: FineTuneJobSpec) -> int:
    alone = (spec.compute.processes_per_node if spec.compute else None) or 1
    return _nodes(spec) * (_gpus(spec) or alone)


def _nodes(spec: FineTuneJobSpec) -> int:
    return (spec.compute.nodes if spec.compute else None) or 1


def _gpus(spec: FineTuneJobSpec) -> int:
    return (spec.compute.gpus_per_node if spec.compute else None) or 0


def _metrics(spec: FineTuneJobSpec) -> list[EvaluationMetric]:
    wanted = spec.evaluation.metrics if spec.evaluation else None
    return list(wanted or _DEFAULT_METRICS[TASKS[spec.model.task].scored])


def _secrets(spec: FineTuneJobSpec) -> list[str]:
    """The job's own Secrets whose keys become environment variables, in an order that does not depend on the spec's."""
    references = (spec.artifacts.secret_ref, spec.model.secret_ref, spec.data.secret_ref)
    return sorted({reference.name for reference in references if reference is not None})


# -- its URIs: which there are, which may be used, which claims they mean ----------------------------------------------


def uris_of(spec: FineTuneJobSpec) -> dict[str, str]:
    """Every URI of a job by the field that holds it, the artifacts' first."""
    uris = {"spec.artifacts.uri": spec.artifacts.uri}
    if parent_name(spec) is None:
        uris["spec.model.uri"] = spec.model.uri
    uris |= {f"spec.data.sources[{number}].uri": source.uri for number, source in enumerate(spec.data.sources)}
    if spec.evaluation is not None and spec.evaluation.dataset is not None:
        uris["spec.evaluation.dataset.uri"] = spec.evaluation.dataset.uri
    return uris


def refusal_of(*, uri: str, allowed_roots: tuple[str, ...]) -> str | None:
    """Why a URI must not be used, or None."""
    if ".." in uri.split("/"):
        return f'{uri} contains ".."; write the path without it'
    if uri.startswith("file://") and not uri.startswith("file:///"):
        rest = uri.removeprefix("file://").removeprefix("./")
        return (
            f"{uri} names no absolute path; write file:///folder/{rest}, or, in local mode only, file://./{rest} for"
            " what lies beside the manifest"
        )
    if not any(_is_under(uri=uri, root=root) for root in allowed_roots):
        roots = ", ".join(allowed_roots) or "none"
        return f"{uri} is outside the allowed roots ({roots}); move it there, or have an administrator allow its root"
    return None


def claims_of(spec: FineTuneJobSpec, *, also: Iterable[str] = ()) -> list[Claim]:
    """The claims behind the job's pvc:// URIs, and others, by name; writable where the artifacts are."""
    return claims_behind(read=[*uris_of(spec).values(), *also], written=[spec.artifacts.uri])


def parent_name(spec: FineTuneJobSpec) -> str | None:
    """The ModelVersion that the job goes on from."""
    uri = spec.model.uri
    return uri.removeprefix(_VERSION) if uri.startswith(_VERSION) else None


def parent_refusal(parent: ParentOrder, *, config: OperatorConfig) -> Refusal | None:
    """A ModelVersion may have been made by hand, and name anything."""
    for uri in _of_versions(None, parent):
        problem = refusal_of(uri=uri, allowed_roots=config.allowed_roots)
        if problem:
            message = f"spec.model.uri: ModelVersion {parent.name}: {problem}"
            return Refusal(reason=Reason.URI_NOT_ALLOWED, message=message)
    return None


def _of_versions(baseline: BaselineOrder | None, parent: ParentOrder | None) -> list[str]:
    """What is read of other versions."""
    found: list[str | None] = []
    for version in (baseline, parent):
        if version is not None and version.artifact is not None:
            needed = [version.base.loadable_uri] if version.artifact.format == "Adapter" else []
            found += [version.artifact.uri, version.data_manifest, *needed]
    return [uri for uri in found if uri is not None]


def _is_under(*, uri: str, root: str) -> bool:
    if root.endswith("/"):
        return uri.startswith(root)
    return uri == root or uri.startswith(f"{root}/")
