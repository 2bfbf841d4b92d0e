"""Where the comparison of a version with what is stable stands: found from its Jobs and from what was recorded.

A version is proven against what was stable when its job began. Where that has changed, what was proven says nothing of
what it would replace: it is evaluated again first. The state of that is in the Jobs; the result is in the status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.modelendpoint import ComparisonStatus, ModelEndpointStatus, ServedVersion
from finetune_api.modelversion import ModelVersion
from finetune_api.results import EvaluateResult
from finetune_operator.attempts.evaluation import read_evaluation_plan
from finetune_operator.attempts.judge import judge, last_end
from finetune_operator.attempts.observed import Attempt
from finetune_operator.attempts.restarts import Budget, Cause
from finetune_operator.attempts.verdicts import Absent, Broken, Running, Stopping, Succeeded, Waiting
from finetune_operator.core.controller import ChildRef
from finetune_operator.core.names import short_hash
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import after
from finetune_operator.endpoint.observed import ObservedEndpoint

MOST_FAILURES = 3
"""Of one comparison: whatever ended the third attempt, somebody should look."""
MOST_ATTEMPTS = 20
"""Those that were interrupted included: preemption, a lost node, a deleted pod."""
_RETRY_SECONDS = 30.0
"""Before the second attempt; twice as long before each further one."""
_LONGEST_RETRY_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class ToStart:
    """The next attempt is to be made."""

    attempt: int
    avoid: tuple[str, ...] = ()
    """Nodes that may have ended those before."""


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """An attempt runs, or waits for something; `message` says for what, where it is worth saying."""

    message: str = ""
    look_again: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """There is a result."""

    result: EvaluateResult


@dataclass(frozen=True, kw_only=True)
class Failed:
    """There will be no result unless somebody does something."""

    reason: str
    message: str
    key: str
    """Of the Jobs' label names.COMPARISON_LABEL."""


Standing = ToStart | UnderWay | Compared | Failed


def comparison_key(*, version_uid: str, baseline_digest: str) -> str:
    """Names a comparison: the same version and the same baseline, the same key."""
    return short_hash(f"{version_uid}/{baseline_digest}")


def key_of(version: ModelVersion, *, stable: ServedVersion) -> str:
    """The key of the comparison that a version needs now."""
    return comparison_key(version_uid=version.metadata.uid, baseline_digest=stable.digest)


def recorded(status: ModelEndpointStatus, *, uid: str) -> ComparisonStatus | None:
    """The comparison of a version with what is stable now, where there was one."""
    stable = status.stable
    if stable is None:
        return None
    return next(
        (each for each in status.comparisons if each.version.uid == uid and each.baseline.digest == stable.digest), None
    )


def is_due(version: ModelVersion, *, status: ModelEndpointStatus) -> bool:
    """Whether a version has to be compared again before it is tried."""
    stable = status.stable
    if stable is None or version.spec.baseline.digest == stable.digest:
        return False
    found = recorded(status, uid=version.metadata.uid)
    return found is None or not (found.accepted or found.held)


def impossible(observed: ObservedEndpoint, *, version: ModelVersion) -> str | None:
    """Why a version cannot be compared with what is stable, with the way out; None: it can be."""
    stable, name = observed.endpoint.status.stable, version.metadata.name
    before = f"{name} was compared with {version.spec.baseline.name}"
    if stable is None:
        return None
    if read_evaluation_plan(version.spec.evaluation.plan) is None:
        return f"{before}, and {stable.name} is stable now; run its job again to compare it with what it would replace"
    if baseline_of(observed) is None:
        return (
            f"{before}, and {stable.name} is stable now, whose ModelVersion is gone: restore it, or pin {name} with "
            "spec.version to try it without a comparison"
        )
    return None


def baseline_of(observed: ObservedEndpoint) -> ModelVersion | None:
    """The record of what is stable; after a restore it has another UID than what serves."""
    stable = observed.endpoint.status.stable
    if stable is None:
        return None
    same = (
        each
        for each in observed.versions
        if (each.metadata.name, each.spec.artifact.digest) == (stable.name, stable.digest)
    )
    return observed.version(stable.uid) or next(same, None)


def standing(observed: ObservedEndpoint, *, version: ModelVersion) -> Standing:
    """How far the comparison of a version with what is stable is."""
    stable = observed.endpoint.status.stable
    key = key_of(version, stable=stable) if stable is not None else ""
    found = observed.comparisons.get(key)
    if found is None:
        return ToStart(attempt=1)
    attempts, newest = found.attempts, max(found.attempts)
    attempt = attempts[newest]
    verdict = judge(attempt=attempt, stage="Evaluate", size=1, now=observed.now, config=observed.config)
    if isinstance(verdict, Absent):
        return ToStart(attempt=newest + 1)  # somebody has deleted the Job
    if isinstance(verdict, Succeeded) and isinstance(verdict.result, EvaluateResult):
        return Compared(result=verdict.result)
    if isinstance(verdict, Broken):
        return _after_failure(observed, attempts, broken=verdict, key=key)
    if isinstance(verdict, Running | Succeeded):
        return UnderWay()
    if isinstance(verdict, Stopping):
        return UnderWay(message=verdict.message, look_again=verdict.look_again)
    return UnderWay(message=_wait_words(verdict, attempt=attempt), look_again=verdict.look_again)


def stale(observed: ObservedEndpoint, *, wanted: ModelVersion | None) -> tuple[ChildRef, ...]:
    """Children of comparisons that nobody waits for any more. `wanted`: the version that is being compared.

    What has failed for good is kept while its version could still be tried: it says what was wrong, and that it was
    tried. To delete it is to ask for another try.
    """
    status = observed.endpoint.status
    if status.stable is None and observed.routes is not None:
        return ()  # a restored endpoint that is not adopted yet
    settled = {each.uid for each in status.versions}
    kept: set[str] = set()
    for version in observed.versions:
        metadata = version.metadata
        open_ = metadata.uid not in settled or metadata.name == observed.endpoint.spec.version
        if status.stable is None or not open_ or not is_due(version, status=status):
            continue
        current = wanted is not None and wanted.metadata.uid == metadata.uid
        if current or isinstance(standing(observed, version=version), Failed):
            kept.add(key_of(version, stable=status.stable))
    return tuple(ref for key, found in sorted(observed.comparisons.items()) if key not in kept for ref in found.refs)


def _wait_words(waiting: Waiting, *, attempt: Attempt) -> str:
    name = attempt.job.ref.name if attempt.job is not None else ""
    if waiting.reason == Reason.PODS_NOT_CREATED:
        return f"{waiting.message}; kubectl describe job {name} says why"
    return f"Job {name} waits to be admitted" if waiting.queued and not waiting.message else waiting.message


def _after_failure(
    observed: ObservedEndpoint, attempts: Mapping[int, Attempt], *, broken: Broken, key: str
) -> Standing:
    newest, now = max(attempts), observed.now
    ends = [
        judge(attempt=each, stage="Evaluate", size=1, now=now, config=observed.config) for each in attempts.values()
    ]
    failures = sum(isinstance(end, Broken) and end.cause.budget is Budget.FAILURES for end in ends)
    # An attempt that may still start must not get a second one beside it.
    last = broken.cause.budget is Budget.NONE or broken.cause is Cause.NOT_STARTED
    if last or failures >= MOST_FAILURES or newest >= MOST_ATTEMPTS:
        return Failed(reason=broken.reason, message=broken.message, key=key)
    job = attempts[newest].job
    ended = last_end(attempt=attempts[newest]) or (job.created if job is not None else now)
    due = after(ended, min(_LONGEST_RETRY_SECONDS, _RETRY_SECONDS * 2.0 ** (len(attempts) - 1)))
    if now < due:
        return UnderWay(message=f"attempt {newest} ended ({broken.reason}: {broken.message})", look_again=due)
    # A wish only, also after a second end there: a comparison is small, and may have no other node to wait for.
    avoid = dict.fromkeys(end.node for end in ends if isinstance(end, Broken) and end.node)
    return ToStart(attempt=newest + 1, avoid=tuple(avoid))
