"""Which version is next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from finetune_api.modelendpoint import (
    ROLLBACK,
    HeldVersion,
    ModelEndpointStatus,
    ServedVersion,
    VersionOutcome,
)
from finetune_api.modelversion import ModelVersion
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import BEGINNING
from finetune_operator.endpoint.approvals import held_words, hold_of, passes
from finetune_operator.endpoint.comparison import comparison
from finetune_operator.endpoint.names import COMPARISON_LABEL
from finetune_operator.endpoint.observed import ObservedEndpoint

MOST_OUTCOMES = 100
"""Outcomes that a status remembers; the oldest go first."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The version to try next; or none, and why, where somebody would expect one."""

    version: ModelVersion | None = None
    fast: bool = False
    """It was stable before: back to it without shadow, steps or approval."""
    passed_over: tuple[ModelVersion, ...] = ()
    """Older ones that were waiting for their turn: this one makes them pointless."""
    compare: ModelVersion | None = None
    """The version to try next once it has been compared with what is stable."""
    held: tuple[HeldVersion, ...] = ()
    """The versions that wait for a person, the newest first; those that may be tried by an approval among them."""
    problem: tuple[str, str] | None = None
    """Reason and message: what stands in the way of a version that is waiting or pinned."""


def choose(observed: ObservedEndpoint) -> Choice:
    """The pinned version, or else the newest proven one that was not tried. The same for the same objects."""
    pin = observed.endpoint.spec.version
    return _pinned(observed, name=pin) if pin else _newest(observed)


def choose_former(observed: ObservedEndpoint) -> Choice:
    """The version to go back to when the stable one is to be left: the last one before it that was promoted."""
    for outcome in formers(observed.endpoint.status):
        version = observed.version(outcome.uid)
        if version is not None:
            return Choice(version=version, fast=True)
    message = (
        "there is no other version that was stable before; apply a FineTuneJob, pin one with spec.version, or remove "
        f"the annotation {ROLLBACK}"
    )
    return Choice(problem=(Reason.NOTHING_TO_ROLL_BACK_TO, message))


def formers(status: ModelEndpointStatus) -> Iterator[VersionOutcome]:
    """What was stable before and was not left since, the newest first: what the stable version can be left for."""
    stable = status.stable.uid if status.stable else ""
    for outcome in reversed(status.versions):
        if outcome.uid != stable and outcome.outcome == "Promoted" and outcome_of(status, outcome.uid) is outcome:
            yield outcome


def order_of(version: ModelVersion) -> tuple[datetime, str]:
    """Versions come in this order."""
    return version.metadata.creation_timestamp or BEGINNING, version.metadata.uid


def outcome_of(status: ModelEndpointStatus, uid: str) -> VersionOutcome | None:
    """What became of a version, the last time."""
    return next((outcome for outcome in reversed(status.versions) if outcome.uid == uid), None)


def _pinned(observed: ObservedEndpoint, *, name: str) -> Choice:
    status = observed.endpoint.status
    version = next((each for each in observed.versions if each.metadata.name == name), None)
    if version is None:
        message = f'spec.version names "{name}", which does not exist; correct it, or leave it empty for the newest'
        return Choice(problem=(Reason.VERSION_NOT_FOUND, message))
    uid = version.metadata.uid
    if uid in _in_use(status) or _is_record_of(version, status.stable):
        return Choice()
    if version.spec.task != observed.endpoint.spec.task:
        return Choice(problem=(Reason.WRONG_TASK, _wrong_task(version, observed)))
    outcome = outcome_of(status, uid)
    if outcome is not None and outcome.outcome == "Promoted":
        return Choice(version=version, fast=True)
    if outcome is not None and outcome.outcome in ("Rejected", "RolledBack"):
        message = (
            f"{name} was tried and {PARTICIPLES[outcome.outcome]} ({outcome.reason}); it is not tried again: train a "
            "new version, or pin another one"
        )
        return Choice(problem=(Reason.VERSION_FAILED_BEFORE, message))
    held = _held(observed, version=version)
    if held is not None and not _approved(observed, held):
        return Choice(problem=_to_approve(observed, held), held=(held,))
    if not (accepted(version) or version.spec.evaluation.held):
        verdict = version.spec.evaluation.verdict
        return Choice(problem=(Reason.NOT_PROVEN, f"{name} did not pass its evaluation ({verdict}); pin one that did"))
    if not comparison.is_due(version, status=status) or comparison.impossible(observed, version=version):
        return Choice(version=version)  # who pins what cannot be compared wants it all the same
    problem = comparison_problem(observed, version=version)
    return Choice(problem=problem) if problem is not None else Choice(compare=version)


def _newest(observed: ObservedEndpoint) -> Choice:
    status = observed.endpoint.status
    tried = {outcome.uid for outcome in status.versions} | _in_use(status)
    waiting = sorted(
        (
            version
            for version in observed.versions
            if version.metadata.uid not in tried
            and not _may_be_forgotten(version, status=status)
            and (accepted(version) or version.spec.evaluation.held)
            and version.spec.endpoint_ref is not None
            and version.spec.endpoint_ref.name == observed.endpoint.metadata.name
        ),
        key=order_of,
    )
    problem: tuple[str, str] | None = None
    waits: tuple[HeldVersion, ...] = ()
    while waiting:
        version = waiting.pop()
        held = _held(observed, version=version)
        waits = (*waits, held) if held is not None else waits
        if held is not None and not _approved(observed, held):
            problem = problem or _to_approve(observed, held)
        elif version.spec.task != observed.endpoint.spec.task:
            problem = problem or (Reason.WRONG_TASK, _wrong_task(version, observed))
        elif not comparison.is_due(version, status=status):
            return Choice(version=version, passed_over=tuple(waiting), held=waits)
        else:
            obstacle = comparison_problem(observed, version=version)
            if obstacle is None:
                return Choice(compare=version, held=waits)
            problem = problem or obstacle
    return Choice(problem=problem, held=waits)


def _may_be_forgotten(version: ModelVersion, *, status: ModelEndpointStatus) -> bool:
    """Whether what became of a version may be among the outcomes that the status no longer has: it is not tried again.
    One that only waits is not lost so: whatever is newer and begins supersedes it."""
    known = status.versions
    return len(known) >= MOST_OUTCOMES and order_of(version)[0] <= known[0].time


def comparison_problem(observed: ObservedEndpoint, *, version: ModelVersion) -> tuple[str, str] | None:
    """Why a version that must be compared with what is stable is not compared now; None: it can be, or it is."""
    impossible = comparison.impossible(observed, version=version)
    if impossible is not None:
        return Reason.BASELINE_CHANGED, impossible
    name, status = version.metadata.name, observed.endpoint.status
    if status.step is not None and observed.endpoint.spec.version != name:
        return Reason.BASELINE_CHANGED, f"{name} is compared with what is stable when the rollout under way is over"
    standing = comparison.standing(observed, version=version)
    if not isinstance(standing, comparison.Failed):
        return None
    stable = status.stable.name if status.stable else ""
    way_out = (
        f"put that right, then delete its Jobs (label {COMPARISON_LABEL}={standing.key}) to have it compared again, or "
        "train a new version"
    )
    return Reason.COMPARISON_FAILED, (
        f"{name} could not be compared with {stable}, which is stable now ({standing.reason}: {standing.message}); "
        f"{way_out}"
    )


def accepted(version: ModelVersion) -> bool:
    """Whether its evaluation, and its job's policy, let it go on."""
    evaluation = version.spec.evaluation
    return evaluation.verdict == "Pass" if evaluation.accepted is None else evaluation.accepted


def _held(observed: ObservedEndpoint, *, version: ModelVersion) -> HeldVersion | None:
    """The version, where its newest comparison was undecided under Hold."""
    metadata, found = version.metadata, comparison.recorded(observed.endpoint.status, uid=version.metadata.uid)
    waits = version.spec.evaluation.held if found is None else found.held
    if not waits:
        return None
    baseline = version.spec.baseline.name if found is None else found.baseline.name
    reason = f"not decided against {baseline} (evaluation.onInconclusive: Hold)"
    return HeldVersion(name=metadata.name, uid=metadata.uid, reason=reason, baseline=baseline)


def _approved(observed: ObservedEndpoint, held: HeldVersion) -> bool:
    return passes(observed.endpoint.status, uid=held.uid, hold=hold_of(held))


def _to_approve(observed: ObservedEndpoint, held: HeldVersion) -> tuple[str, str]:
    return Reason.AWAITING_APPROVAL, f"{held.name} is held: {held_words(observed.endpoint.status, held)}"


def _in_use(status: ModelEndpointStatus) -> set[str]:
    return {served.uid for served in (status.stable, status.candidate, status.previous) if served is not None}


def _is_record_of(version: ModelVersion, served: ServedVersion | None) -> bool:
    """Whether it is what serves under another UID: the ModelVersion was restored."""
    wanted = version.metadata.name, version.spec.artifact.digest
    return served is not None and wanted == (served.name, served.digest)


def _wrong_task(version: ModelVersion, observed: ObservedEndpoint) -> str:
    return (
        f"{version.metadata.name} is for task {version.spec.task}, this endpoint serves {observed.endpoint.spec.task}; "
        "name the endpoint of that task in the job"
    )


PARTICIPLES = {"Rejected": "rejected", "RolledBack": "rolled back"}
