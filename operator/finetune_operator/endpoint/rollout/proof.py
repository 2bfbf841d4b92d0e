"""What is proven of a version, and why it is not where it goes on all the same."""

from __future__ import annotations

from finetune_api.modelendpoint import ServedVersion
from finetune_api.modelversion import ModelVersion
from finetune_operator.endpoint.comparison.comparison import recorded
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.rollout.choose import outcome_of

_LONGEST = 1024


def doubted(version: ServedVersion, why: str) -> ServedVersion:
    """The version with a reason, or a further one, for which it is not proven."""
    words = f"{version.unproven}; {why}" if version.unproven else why
    return version.model_copy(update={"proven": False, "unproven": words[:_LONGEST]})


def with_proof(
    observed: ObservedEndpoint, served: ServedVersion, *, version: ModelVersion, fast: bool
) -> ServedVersion:
    """The version with what its evaluation says of it beside what it is to replace. `fast`: it was stable before."""
    status, evaluation = observed.endpoint.status, version.spec.evaluation
    stable = status.stable
    if fast:
        former = outcome_of(status, served.uid)
        before = former.proven if former is not None else None
        return doubted(served, former.reason) if former and before is False else _with(served, proven=before)
    if stable is None:
        return doubted(served, "the first version: nothing served that it could be compared with")
    found = recorded(status, uid=served.uid)
    if found is None and version.spec.baseline.digest != stable.digest:
        return doubted(served, f"never compared with {stable.name}, which it is to replace")
    verdict, held = (found.verdict, found.held) if found is not None else (evaluation.verdict, evaluation.held)
    if verdict == "Pass":
        return _with(served, proven=True)
    by = status.approval.by if held and status.approval is not None else ""
    leave = f"approved by {by}" if by else "evaluation.onInconclusive: Proceed"
    return doubted(served, f"not decided against {stable.name} ({leave})")


def _with(version: ServedVersion, *, proven: bool | None) -> ServedVersion:
    return version.model_copy(update={"proven": proven})
