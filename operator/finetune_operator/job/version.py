"""The ModelVersion that a run leaves behind: an immutable record, owned by nobody, rejected runs included."""

from __future__ import annotations

from finetune_api import API_VERSION
from finetune_api.base import VersionReference
from finetune_api.finetunejob import EvaluationStatus, FineTuneJob
from finetune_api.modelversion import (
    BaselineRecord,
    ConfigRecord,
    DataRecord,
    EvaluationRecord,
    JobReference,
    Lineage,
    ModelVersion,
    ModelVersionSpec,
)
from finetune_api.results import EvaluateResult, PrepareResult
from finetune_api.shared_fields import Software
from finetune_api.tasks import TASKS
from finetune_operator.attempts.evaluation import EvaluationPlan
from finetune_operator.core.names import ENDPOINT_LABEL, JOB_LABEL
from finetune_operator.core.ports import Manifest
from finetune_operator.gates.policy import Judgement
from finetune_operator.job.children import version_name
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.stages import Results, evaluation_plan


def made_by(*, version: ModelVersion, job: FineTuneJob) -> bool:
    """Whether a version is the record of this very job."""
    return version.spec.lineage.job.uid == job.metadata.uid


def version_manifest(
    *,
    job: FineTuneJob,
    plan: ResolvedPlan,
    results: Results,
    evaluation: EvaluationStatus,
    judgement: Judgement,
    taken: bool,
) -> Manifest:
    """The record of a run whose three stages are complete.

    `judgement`: what the job's policy makes of the verdict. `taken`: another run's version has the job's name.

    Raises ValueError where a result is missing.
    """
    endpoint = job.spec.endpoint_ref
    labels = {JOB_LABEL: job.metadata.name} | ({ENDPOINT_LABEL: endpoint.name} if endpoint else {})
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelVersion",
        "metadata": {
            "name": version_name(job=job, taken=taken),
            "namespace": job.metadata.namespace,
            "labels": labels,
        },
        "spec": _spec(job=job, plan=plan, results=results, evaluation=evaluation, judgement=judgement).to_dict(),
    }


def _spec(
    *, job: FineTuneJob, plan: ResolvedPlan, results: Results, evaluation: EvaluationStatus, judgement: Judgement
) -> ModelVersionSpec:
    prepare, train, evaluate = results.prepare, results.train, results.evaluate
    if prepare is None or train is None or evaluate is None:
        raise ValueError("a ModelVersion needs the results of Prepare, Train and Evaluate")
    baseline = plan.baseline or plan.model.parent
    return ModelVersionSpec(
        endpoint_ref=job.spec.endpoint_ref,
        artifact=train.artifact,
        base=prepare.base,
        task=plan.model.task,
        method=plan.method.to_dict(),
        training=plan.optimisation.to_dict() | ({"strategy": train.strategy} if train.strategy else {}),
        labels=prepare.labels,
        context_tokens=_context_tokens(plan, prepare=prepare),
        data=DataRecord(
            digest=prepare.data_digest,
            manifest=prepare.manifest,
            rows=prepare.summary.rows,
            sources=prepare.sources,
        ),
        baseline=BaselineRecord(
            name=baseline.name if baseline else "Base",
            uid=baseline.uid if baseline else None,
            digest=evaluate.baseline_digest,
        ),
        evaluation=EvaluationRecord(
            verdict=evaluation.verdict,
            accepted=judgement.accepted,
            held=judgement.held or None,
            report=evaluation.report,
            results=evaluation.results,
            precision=evaluate.precision,
            plan=_evaluation_plan(job=job, plan=plan, result=evaluate).to_dict(),
        ),
        lineage=Lineage(
            job=JobReference(name=job.metadata.name, uid=job.metadata.uid),
            parent=VersionReference(name=plan.model.parent.name, uid=plan.model.parent.uid)
            if plan.model.parent
            else None,
            deepspeed=_config(job, digest=train.deepspeed),
        ),
        software=Software(trainer_image=plan.trainer_image, packages=train.packages or None),
    )


def _evaluation_plan(*, job: FineTuneJob, plan: ResolvedPlan, result: EvaluateResult) -> EvaluationPlan:
    """When it is compared again it computes in what it was proven in, whatever machine that is on."""
    made = evaluation_plan(job=job, plan=plan)
    return made if result.precision is None else made.model_copy(update={"precision": result.precision})


def _config(job: FineTuneJob, *, digest: str | None) -> ConfigRecord | None:
    reference = job.spec.compute.config_ref if job.spec.compute else None
    return ConfigRecord(name=reference.name, key=reference.key, digest=digest) if reference and digest else None


def _context_tokens(plan: ResolvedPlan, *, prepare: PrepareResult) -> int | None:
    """Some texts were read up to maxLength when they were evaluated; what else generates may fill its context."""
    cut = plan.optimisation.max_length if TASKS[plan.model.task].cuts_texts else None
    return min((each for each in (prepare.context_tokens, cut) if each is not None), default=None)
