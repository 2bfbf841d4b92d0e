"""After the last stage: the record of the run, and its end. And after the end: only clean-up."""

from __future__ import annotations

from finetune_api.base import VersionReference
from finetune_operator.gates.policy import Comparison, judge
from finetune_operator.job.cleanup import expiry, removals
from finetune_operator.job.conditions import Summary
from finetune_operator.job.decision import Draft
from finetune_operator.job.mirror import mirror
from finetune_operator.job.observed import Observed
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.stages import recorded_results
from finetune_operator.job.version import made_by, version_manifest


def conclude(*, observed: Observed, plan: ResolvedPlan) -> Draft:
    """Make the ModelVersion; once it is there, end the run with the verdict, or follow its rollout to the end."""
    job, evaluation = observed.job, observed.job.status.evaluation
    results = recorded_results(job.status)
    if evaluation is None or results.evaluate is None:
        raise ValueError("all stages are complete, but the status holds no evaluation; was it edited?")
    judgement = judge(
        Comparison(
            verdict=evaluation.verdict,
            rows=evaluation.results,
            examples=results.evaluate.examples,
            baseline=plan.baseline.name if plan.baseline else "the base model",
            on_inconclusive=plan.on_inconclusive,
        )
    )
    version = next((version for version in observed.versions if made_by(version=version, job=job)), None)
    if version is None:
        manifest = version_manifest(
            job=job,
            plan=plan,
            results=results,
            evaluation=evaluation,
            judgement=judgement,
            taken=bool(observed.versions),
        )
        return Draft(
            status=job.status,
            phase="Evaluating",
            summary=Summary(state="Reconciling", reason="Evaluating", message="Evaluate is complete"),
            create=(manifest,),
            at_once=True,
        )
    reference = VersionReference(name=version.metadata.name, uid=version.metadata.uid)
    status = job.status.model_copy(update={"model_version": reference})
    message = f"{version.metadata.name}: {judgement.message}"
    at_endpoint = job.spec.endpoint_ref is not None
    if not judgement.accepted and not (judgement.held and at_endpoint):
        return Draft(
            status=status,
            phase="Rejected",
            summary=Summary(state="Stalled", reason=judgement.reason, message=message),
            at_once=True,
        )
    if at_endpoint:
        return mirror(observed=observed, status=status, version=reference)
    return Draft(
        status=status,
        phase="Succeeded",
        summary=Summary(state="Ready", reason="Succeeded", message=message),
        at_once=True,
    )


def after_the_end(observed: Observed) -> Draft:
    """The verdict stands. What still runs is ended; what has expired is removed."""
    status = observed.job.status
    due = expiry(observed.job)
    ready = status.condition("Ready")
    return Draft(
        status=status,
        phase=status.phase or "Failed",
        summary=Summary(
            state="Ready" if status.phase == "Succeeded" else "Stalled",
            reason=ready.reason if ready else str(status.phase),
            message=status.message or "",
        ),
        delete=removals(observed),
        look_again=(due,) if due is not None and observed.now < due else (),
    )
