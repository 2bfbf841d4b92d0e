"""What compares a version with what is stable: a ConfigMap with the order, and the Job of an attempt.

The same order, and the same pod, as the evaluation of the version's own job had; only the baseline is another one, and
the scores go into a folder of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_api.run import EvaluateRun, Identity, ModelOrder
from finetune_operator.attempts.claims import Claim, claims_behind, locations
from finetune_operator.attempts.evaluation import EvaluationPlan, baseline_order, evaluation_order
from finetune_operator.attempts.manifests import PodInputs, Size, attempt_manifests
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.names import ATTEMPT_LABEL, STAGE_LABEL, for_one_pod
from finetune_operator.core.ports import Manifest
from finetune_operator.endpoint.names import COMPARISON, COMPARISON_LABEL, comparison_name, metadata_of


def comparison_manifests(
    *,
    endpoint: ModelEndpoint,
    version: ModelVersion,
    baseline: ModelVersion,
    plan: EvaluationPlan,
    key: str,
    attempt: int,
    config: OperatorConfig,
    avoid: Sequence[str] = (),
) -> tuple[Manifest, ...]:
    """ConfigMap and Job, in the order in which they must be made."""
    name = comparison_name(endpoint=endpoint.metadata.name, key=key, attempt=attempt)
    metadata = metadata_of(endpoint=endpoint, name=name, component=COMPARISON)
    own = {COMPARISON_LABEL: key, STAGE_LABEL: "Evaluate", ATTEMPT_LABEL: str(attempt)}
    metadata = {**metadata, "labels": {**metadata["labels"], **own}}
    claims = _claims(version=version, baseline=baseline, plan=plan)
    inputs = PodInputs(
        metadata=metadata,
        queue_labels=plan.labels,
        annotations=for_one_pod(plan.annotations),
        image=config.trainer_image,
        size=Size(pods=1, gpus=plan.gpus, resources=plan.resources, gpu_resource=plan.gpu_resource),
        claims=claims,
        secrets=plan.secrets,
        overlay=plan.pod_template,
        avoid=avoid,
    )
    order = _order(
        version=version, baseline=baseline, plan=plan, key=key, attempt=attempt, claims=claims, config=config
    )
    return attempt_manifests(inputs, order=order, config=config)


def _order(
    *,
    version: ModelVersion,
    baseline: ModelVersion,
    plan: EvaluationPlan,
    key: str,
    attempt: int,
    claims: list[Claim],
    config: OperatorConfig,
) -> EvaluateRun:
    spec = version.spec
    return evaluation_order(
        identity=Identity(
            namespace=version.metadata.namespace, job=spec.lineage.job.name, uid=spec.lineage.job.uid, attempt=attempt
        ),
        locations=locations(run=plan.run, cache=plan.cache, claims=claims, config=config),
        plan=plan,
        model=ModelOrder(uri=spec.base.uri, revision=spec.base.revision, task=spec.task),
        base=spec.base,
        candidate=spec.artifact,
        labels=spec.labels,
        data_digest=spec.data.digest,
        baseline=baseline_order(baseline),
        output=f"{plan.run}/comparisons/{key}",
    )


def _claims(*, version: ModelVersion, baseline: ModelVersion, plan: EvaluationPlan) -> list[Claim]:
    read = [uri for each in (version, baseline) for uri in (each.spec.artifact.uri, each.spec.base.loadable_uri)]
    if baseline.spec.data.manifest is not None:
        read.append(baseline.spec.data.manifest)
    return claims_behind(read=read, written=[plan.run, plan.cache])
