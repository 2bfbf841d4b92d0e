"""Which version is next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.modelendpoint import ModelEndpointStatus, ServedVersion, VersionOutcome
from finetune_api.modelversion import ModelVersion
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.job.times import BEGINNING


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The version to try next; or none, and why, where somebody would expect one."""

    version: ModelVersion | None = None
    fast: bool = False
    """It was stable before: back to it without shadow, steps or approval."""
    passed_over: tuple[ModelVersion, ...] = ()
    """Older ones that were waiting for their turn: this one makes them pointless."""
    problem: tuple[str, str] | None = None
    """Reason and message: what stands in the way of a version that is waiting or pinned."""


def choose(observed: ObservedEndpoint) -> Choice:
    """The pinned version, or else the newest proven one that was not tried. The same for the same objects."""
    pin = observed.endpoint.spec.version
    return _pinned(observed, name=pin) if pin else _newest(observed)


def choose_former(observed: ObservedEndpoint) -> Choice:
    """The version to go back to when the stable one is to be left: the last one before it that was promoted."""
    status = observed.endpoint.status
    stable = status.stable.uid if status.stable else ""
    for outcome in reversed(status.versions):
        version = observed.version(outcome.uid)
        last = outcome_of(status, outcome.uid)
        left = last is None or last.outcome != "Promoted"
        if outcome.outcome == "Promoted" and not left and outcome.uid != stable and version is not None:
            return Choice(version=version, fast=True)
    message = "there is no other version that was stable before; apply a FineTuneJob, or pin one with spec.version"
    return Choice(problem=("NothingToRollBackTo", message))


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
        return Choice(problem=("VersionNotFound", message))
    uid = version.metadata.uid
    if uid in _in_use(status) or _is_record_of(version, status.stable):
        return Choice()
    if version.spec.task != observed.endpoint.spec.task:
        return Choice(problem=("WrongTask", _wrong_task(version, observed)))
    outcome = outcome_of(status, uid)
    if outcome is not None and outcome.outcome == "Promoted":
        return Choice(version=version, fast=True)
    if outcome is not None and outcome.outcome in ("Rejected", "RolledBack"):
        message = (
            f"{name} was tried and {PARTICIPLES[outcome.outcome]} ({outcome.reason}); it is not tried again: train a "
            "new version, or pin another one"
        )
        return Choice(problem=("VersionFailedBefore", message))
    if not accepted(version):
        verdict = version.spec.evaluation.verdict
        return Choice(problem=("NotProven", f"{name} did not pass its evaluation ({verdict}); pin one that did"))
    return Choice(version=version)


def _newest(observed: ObservedEndpoint) -> Choice:
    status, stable = observed.endpoint.status, observed.endpoint.status.stable
    tried = {outcome.uid for outcome in status.versions} | _in_use(status)
    waiting = sorted(
        (
            version
            for version in observed.versions
            if version.metadata.uid not in tried
            and accepted(version)
            and version.spec.endpoint_ref is not None
            and version.spec.endpoint_ref.name == observed.endpoint.metadata.name
        ),
        key=order_of,
    )
    problem: tuple[str, str] | None = None
    while waiting:
        version = waiting.pop()
        name = version.metadata.name
        if version.spec.task != observed.endpoint.spec.task:
            problem = problem or ("WrongTask", _wrong_task(version, observed))
        elif stable is not None and version.spec.baseline.digest != stable.digest:
            message = (
                f"{name} was compared with {version.spec.baseline.name}, and {stable.name} is stable now; "
                "run its job again to compare it with what it would replace"
            )
            problem = problem or ("BaselineChanged", message)
        else:
            return Choice(version=version, passed_over=tuple(waiting))
    return Choice(problem=problem)


def accepted(version: ModelVersion) -> bool:
    """Whether its evaluation, and its job's policy, let it go on."""
    evaluation = version.spec.evaluation
    return evaluation.verdict == "Pass" if evaluation.accepted is None else evaluation.accepted


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
