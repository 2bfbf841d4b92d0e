"""While nothing else is under way: the comparison of the next version with what is stable, one step of it."""

from __future__ import annotations

from finetune_api.base import VersionReference
from finetune_api.modelendpoint import ComparisonStatus, ServedVersion
from finetune_api.modelversion import BaselineRecord, ModelVersion
from finetune_api.results import EvaluateResult
from finetune_operator.attempts.evaluation import EvaluationPlan, read_evaluation_plan
from finetune_operator.core.conditions import Summary
from finetune_operator.core.controller import Event
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import whole_second
from finetune_operator.endpoint import facts
from finetune_operator.endpoint.comparison.comparison import (
    Compared,
    Failed,
    ToStart,
    UnderWay,
    baseline_of,
    key_of,
    standing,
)
from finetune_operator.endpoint.comparison.comparison_job import comparison_manifests
from finetune_operator.endpoint.decision import Draft
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.gates.policy import Comparison, judge
from finetune_operator.gates.verdict import overall_verdict

_LONGEST_REASON = 1024


def compare(observed: ObservedEndpoint, version: ModelVersion) -> Draft:
    """Start an attempt, wait for it, or record what it has brought. `version` is one that can be compared."""
    stable = observed.endpoint.status.stable
    plan = read_evaluation_plan(version.spec.evaluation.plan)
    baseline = baseline_of(observed)
    if stable is None or plan is None or baseline is None:
        raise ValueError(f"{version.metadata.name} cannot be compared; choose() should have said so")
    found = standing(observed, version=version)
    if isinstance(found, Compared):
        return _recorded(observed, version=version, plan=plan, result=found.result, stable=stable)
    if isinstance(found, Failed):
        raise ValueError(f"the comparison of {version.metadata.name} has failed; choose() should have said so")
    message = f"comparing {version.metadata.name} with {stable.name}, which is stable now"
    if isinstance(found, UnderWay):
        return _waiting(observed, stable=stable, message=message, found=found)
    return _started(observed, version=version, baseline=baseline, plan=plan, stable=stable, message=message, to=found)


def _waiting(observed: ObservedEndpoint, *, stable: ServedVersion, message: str, found: UnderWay) -> Draft:
    detail = f": {found.message}" if found.message else ""
    return Draft(
        status=observed.endpoint.status,
        summary=_under_way(observed, stable=stable, message=f"{message}{detail}"),
        look_again=(found.look_again,) if found.look_again is not None else (),
    )


def _started(
    observed: ObservedEndpoint,
    *,
    version: ModelVersion,
    baseline: ModelVersion,
    plan: EvaluationPlan,
    stable: ServedVersion,
    message: str,
    to: ToStart,
) -> Draft:
    created = comparison_manifests(
        endpoint=observed.endpoint,
        version=version,
        baseline=baseline,
        plan=plan,
        key=key_of(version, stable=stable),
        attempt=to.attempt,
        avoid=to.avoid,
        config=observed.config,
    )
    return Draft(
        status=observed.endpoint.status,
        summary=_under_way(observed, stable=stable, message=message),
        create=created,
        events=(Event(type="Normal", reason=Reason.COMPARING, message=f"{message} (attempt {to.attempt})"),),
    )


def _recorded(
    observed: ObservedEndpoint,
    *,
    version: ModelVersion,
    plan: EvaluationPlan,
    result: EvaluateResult,
    stable: ServedVersion,
) -> Draft:
    """What came of it, and with it the end of a version that did not pass, in one write."""
    metadata, now = version.metadata, whole_second(observed.now)
    verdict = overall_verdict(rows=result.results, reported=result.verdict)
    judgement = judge(
        Comparison(
            verdict=verdict,
            rows=result.results,
            examples=result.examples,
            baseline=stable.name,
            on_inconclusive=plan.on_inconclusive,
        )
    )
    comparison = ComparisonStatus(
        version=VersionReference(name=metadata.name, uid=metadata.uid),
        baseline=BaselineRecord(name=stable.name, uid=stable.uid, digest=stable.digest),
        verdict=verdict,
        accepted=judgement.accepted,
        held=judgement.held or None,
        reason=judgement.message[:_LONGEST_REASON],
        report=result.report,
        results=result.results,
        time=now,
    )
    status = facts.with_comparison(observed.endpoint.status, comparison)
    message = f"{metadata.name}: {judgement.message}"
    if not judgement.accepted and not judgement.held:
        status = facts.with_outcome(
            status,
            metadata,
            outcome="Rejected",
            reason=f"compared with {stable.name}: {judgement.message}",
            now=now,
        )
    return Draft(
        status=status,
        summary=_under_way(observed, stable=stable, message=message),
        events=(Event(type="Normal" if judgement.accepted else "Warning", reason=judgement.reason, message=message),),
    )


def _under_way(observed: ObservedEndpoint, *, stable: ServedVersion, message: str) -> Summary:
    return Summary(state="Reconciling", reason=Reason.COMPARING, message=f"{observed.served_by(stable)}; {message}")
