"""What a FineTuneJob should do next: a judgement on what was observed, and on nothing else.

    Pending -> (Queued) -> Preparing -> Training -> Evaluating -> Succeeded | Rejected | Failed

Suspended is between any two of these, and ends where it began. A job with an endpoint mirrors the rollout of its
version between Evaluating and the end (mirror.py).
"""

from __future__ import annotations

from dataclasses import replace

from finetune_api.base import VersionReference
from finetune_api.finetunejob import TERMINAL_PHASES
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import after
from finetune_operator.gates.policy import Comparison, judge
from finetune_operator.job.advance import advance
from finetune_operator.job.begin import begin
from finetune_operator.job.cleanup import expiry, removals
from finetune_operator.job.decision import Decision, Draft
from finetune_operator.job.finish import finish
from finetune_operator.job.mirror import mirror
from finetune_operator.job.observed import Observed
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.retry import is_asked, retried, void
from finetune_operator.job.stages import recorded_plan, recorded_results
from finetune_operator.job.version import made_by, version_manifest


def decide(observed: Observed) -> Decision:
    """The next step of a job. The same observation gives the same answer, whoever asks and how often."""
    if observed.job.metadata.deletion_timestamp is not None:
        return Decision()  # its children go by their owner references
    return finish(observed=observed, draft=_draft(observed))


def _draft(observed: Observed) -> Draft:
    status = observed.job.status
    if status.phase in TERMINAL_PHASES:
        return _after_the_end(observed)
    plan = recorded_plan(status)
    if plan is None:
        return begin(observed)
    if isinstance(plan, str):
        # Another version of the operator planned this run: leave it alone, its pods included.
        message = f"{plan}; install the version of the operator that began this run, or a newer one"
        phase = status.phase or "Pending"
        return Draft(status=status, phase=phase, state="Stalled", reason=Reason.PLAN_UNSUPPORTED, message=message)
    stage = next((stage for stage in status.stages if stage.state != "Complete"), None)
    if stage is None:
        return replace(_conclude(observed=observed, plan=plan), delete=removals(observed))
    return advance(observed=observed, plan=plan, stage=stage)


def _conclude(*, observed: Observed, plan: ResolvedPlan) -> Draft:
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
            baseline=plan.baseline_name,
            on_inconclusive=plan.on_inconclusive,
        )
    )
    version = next((version for version in observed.versions if made_by(version=version, job=job)), None)
    seen = VersionReference(name=version.metadata.name, uid=version.metadata.uid) if version is not None else None
    reference = seen or job.status.model_version
    if reference is None:
        manifest = version_manifest(
            job=job,
            plan=plan,
            results=results,
            evaluation=evaluation,
            judgement=judgement,
            taken=bool(observed.versions),
        )
        message = "Evaluate is complete"
        return Draft(status=job.status, phase="Evaluating", message=message, create=(manifest,), at_once=True)
    status = job.status.model_copy(update={"model_version": reference})
    message, at_endpoint = f"{reference.name}: {judgement.message}", job.spec.endpoint_ref is not None
    if not judgement.accepted and not (judgement.held and at_endpoint):
        reason = judgement.reason
        return Draft(status=status, phase="Rejected", state="Stalled", reason=reason, message=message, at_once=True)
    if at_endpoint:
        return mirror(observed=observed, status=status, version=reference, deleted=seen is None)
    return Draft(status=status, phase="Succeeded", state="Ready", message=message, at_once=True)


def _after_the_end(observed: Observed) -> Draft:
    """The verdict stands. What still runs is ended; what has expired is removed."""
    status, due = observed.job.status, expiry(observed.job)
    if is_asked(observed.job) and status.completion_time is not None:
        another = after(status.completion_time, 1)  # its next end has another time
        if observed.now >= another:
            return retried(observed.job)
        due = min(filter(None, (due, another)))
    ready = status.condition("Ready")
    return Draft(
        status=status,
        phase=status.phase or "Failed",
        state="Ready" if status.phase == "Succeeded" else "Stalled",
        reason=ready.reason if ready else "",
        message=status.message or "",
        void=void(observed.job),
        delete=removals(observed),
        look_again=(due,) if due is not None and observed.now < due else (),
    )
