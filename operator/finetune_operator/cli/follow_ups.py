"""What happens after a wish was written, in a sentence or two. Pure."""

from __future__ import annotations

from finetune_api.modelendpoint import ModelEndpoint, VersionMeant
from finetune_operator.cli import words
from finetune_operator.cli.wishes import Verb
from finetune_operator.endpoint.plan import RolloutPlan, read_plan
from finetune_operator.endpoint.requests import read_requests


def what_follows(endpoint: ModelEndpoint, *, verb: Verb, version: VersionMeant | None) -> str:
    """What the operator does next. `endpoint`: as it was when it was asked; `version`: the one meant, if one is."""
    if verb == "pause":
        return _paused(endpoint)
    if verb == "resume":
        return _resumed(endpoint)
    assert version is not None  # noqa: S101 - decisions name one
    if verb == "approve":
        return _approved(endpoint, version=version)
    return _left(endpoint, version=version)


def _plan(endpoint: ModelEndpoint) -> RolloutPlan | None:
    read = read_plan(endpoint.status.plan) if endpoint.status.plan is not None else None
    return read if isinstance(read, RolloutPlan) else None


def _approved(endpoint: ModelEndpoint, *, version: VersionMeant) -> str:
    status, plan, name = endpoint.status, _plan(endpoint), version.name
    step = status.step
    paused = (
        "; first, the pause must end: finetune resume" if read_requests(endpoint.metadata.annotations).pause else ""
    )
    if step is not None and step.stage == "Guard":
        why = f" in spite of {step.held}" if step.held else " whatever the guard finds"
        return f"{name} stays stable{why}{paused}"
    if step is not None and step.held:
        return f"{name} goes on to its next step in spite of {step.held}{paused}"
    if step is not None and step.stage == "Approval":
        guard = f", and it is watched for {words.seconds(plan.guard_seconds)}" if plan and plan.guard_seconds else ""
        return f"{name} is promoted: all requests move to it{guard}{paused}"
    if status.held is not None and status.held.uid == version.uid:
        return f"{name} is tried as if it had been proven: it still has to pass its steps{paused}"
    rest = f"{name} still has to pass its steps"
    if plan is not None and plan.approval == "Manual":
        return f"{rest}; it is promoted after the last one without waiting for a person{paused}"
    return f"{rest}; its rollout asks for no approval, so this only lets it go on where it would be held{paused}"


def _left(endpoint: ModelEndpoint, *, version: VersionMeant) -> str:
    status, name = endpoint.status, version.name
    pin = f"; spec.version still pins {name}: change it" if endpoint.spec.version == name else ""
    if status.candidate is not None and status.candidate.uid == version.uid:
        stays = f"{status.stable.name} answers all requests" if status.stable is not None else "nothing is served"
        return f"{name} is given up and not tried again; {stays}{pin}"
    if status.held is not None and status.held.uid == version.uid:
        return f"{name} is given up and never tried{pin}"
    if status.previous is not None:
        return f"all requests move back to {status.previous.name}, which is warm; {name} is not tried again{pin}"
    started = (
        f"the servers of the version before are started; then all requests move to it, and {name} answers until then"
    )
    if read_requests(endpoint.metadata.annotations).pause:
        return f"once the pause ends (finetune resume), {started}{pin}"
    return f"{started}{pin}"


def _paused(endpoint: ModelEndpoint) -> str:
    plan, status = _plan(endpoint), endpoint.status
    if status.step is None:
        return "no version is tried until finetune resume; what serves goes on to serve"
    tried = status.candidate or status.stable
    name = tried.name if tried is not None else "the rollout"
    if plan is not None and plan.on_regression == "Pause":
        return f"{name} stays where it is until finetune resume; it is watched, and a regression holds it for a person"
    return f"{name} stays where it is until finetune resume; it is watched, and a regression still rolls it back"


def _resumed(endpoint: ModelEndpoint) -> str:
    status = endpoint.status
    if status.step is not None and status.step.held:
        return (
            f"the pause is over, but a regression still holds it ({status.step.held}): approve, reject or roll it back"
        )
    return "it goes on from where it is"
