"""From a draft to a decision: phase, conditions, events, and whether there is anything to write at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from finetune_api import GROUP
from finetune_api.base import Condition
from finetune_api.modelendpoint import EndpointPhase, ModelEndpointStatus, RoutesStatus
from finetune_operator.core.conditions import MAXIMUM_MESSAGE, Summary, Wanted, of_summary, stamped, what_holds
from finetune_operator.core.controller import ChildRef, Event
from finetune_operator.core.ownership import whose
from finetune_operator.core.ports import Manifest
from finetune_operator.core.reasons import Reason
from finetune_operator.core.times import after, seconds_until, whole_second
from finetune_operator.endpoint.approvals import held_words, hold_of, passes
from finetune_operator.endpoint.children import NO_CHILDREN, Children
from finetune_operator.endpoint.decision import Draft, EndpointDecision
from finetune_operator.endpoint.names import analysis_name, metadata_of, server_selector
from finetune_operator.endpoint.next_steps import next_of
from finetune_operator.endpoint.observed import ObservedEndpoint
from finetune_operator.endpoint.requests import read_requests
from finetune_operator.endpoint.rollout.state import PHASES
from finetune_operator.endpoint.settling import settled
from finetune_operator.endpoint.void_requests import void_decisions

ANALYSIS_KEY = "analysis.json"
_FLOWING = ("step", "analysis", "analysisTime", "routes")
"""What changes all the time while requests come in: written at most every few seconds."""
_FLOW_SECONDS = 5.0
_TAKEN_SECONDS = 30.0
"""Most kinds of children are not watched: look this often whether a taken name is free."""
_POLL_SECONDS = 5.0
"""While something is under way, look this often even if no event came: a gateway may have fallen silent."""


def finish(
    *,
    observed: ObservedEndpoint,
    draft: Draft,
    children: Children = NO_CHILDREN,
    delete: tuple[ChildRef, ...] = (),
) -> EndpointDecision:
    """The decision. A draft that says what is known already writes nothing."""
    before, now = observed.endpoint.status, observed.now
    new = summarised(observed=observed, draft=draft, contested=children.contested)
    write, wait = _worth_writing(before=before, new=new, now=now)
    facts_moved = _facts(before) != _facts(new)
    served = {each.uid for each in (new.stable, new.candidate, new.previous) if each is not None}
    busy = new.step is not None or not observed.servers.keys() <= served
    due = [seconds_until(due=time, now=now) for time in (*draft.look_again, *children.look_again)]
    if observed.foreign:
        due.append(_TAKEN_SECONDS)
    if wait is not None:
        due.append(wait)
    if busy:
        due.append(_POLL_SECONDS)
    create = (*children.create, *draft.create)
    acted = bool(create or children.apply or delete)
    status = new.model_copy(update={"analysis_time": whole_second(now)}) if new.step is not None else new
    analysis = _analysis(observed=observed, draft=draft, now=now, write=write)
    return EndpointDecision(
        delete=delete,
        create=create,
        apply=(*children.apply, *analysis),
        status=status if write else None,
        requeue_seconds=0.0 if (write and facts_moved) or acted else min(due, default=None),
        events=(*_true_events(observed, draft, new=new), *_told(before=before, new=new)) if write else (),
    )


def _true_events(observed: ObservedEndpoint, draft: Draft, *, new: ModelEndpointStatus) -> Iterator[Event]:
    """The draft's, where none says `Serving` of a version that answers nobody (yet): it is told why instead."""
    unserved = observed.why_unserved(new.stable) if new.stable is not None else None
    for event in draft.events:
        serving = event.reason == Reason.SERVING and unserved is not None
        yield replace(event, reason=unserved[0]) if serving and unserved is not None else event


def summarised(*, observed: ObservedEndpoint, draft: Draft, contested: tuple[str, ...] = ()) -> ModelEndpointStatus:
    """The status with what follows from the rest of it."""
    status, summary = draft.status, draft.summary
    if observed.foreign:
        taken = "; ".join(whose(each) for _, each in sorted(observed.foreign.items()))
        words = (
            f"{taken}: it is left alone, and what needs the name waits; delete it, or give the endpoint another name"
        )
        summary = Summary(state="Stalled", reason=Reason.NAME_TAKEN, message=words)
    names, epoch = observed.gateways.names, observed.epoch
    routes = RoutesStatus(epoch=epoch, acknowledged=observed.gateways.acknowledged(epoch), gateways=len(names))
    stable = status.stable
    server = observed.servers.get(stable.uid) if stable is not None else None
    name = observed.endpoint.metadata.name
    following = next_of(
        observed.endpoint,
        status=status,
        summary=summary,
        now=observed.now,
        waits_for=draft.waits_for,
        due=min(draft.look_again, default=None),
    )
    status = status.model_copy(update={"next": following})
    return status.model_copy(
        update={
            "observed_generation": observed.endpoint.metadata.generation,
            "replicas": server.replicas if server is not None else 0,
            "selector": server_selector(endpoint=name, version_uid=stable.uid) if stable is not None else None,
            "phase": phase_of(observed=observed, status=status),
            "message": summary.message[:MAXIMUM_MESSAGE],
            "routes": routes if epoch else None,
            "conditions": _conditions(observed=observed, status=status, summary=summary, contested=contested),
        }
    )


def phase_of(*, observed: ObservedEndpoint, status: ModelEndpointStatus) -> EndpointPhase:
    """The one phase that follows from the facts."""
    step = status.step
    if step is not None and step.stage == "RollingBack":
        return "RollingBack"
    if status.stable is None:
        return "Empty"
    if step is None:
        return "Paused" if read_requests(observed.endpoint.metadata.annotations).pause else "Idle"
    if step.held is not None or read_requests(observed.endpoint.metadata.annotations).pause:
        return "Paused"
    return PHASES[step.stage]


def held(*, status: ModelEndpointStatus, summary: Summary, generation: int, now: datetime) -> ModelEndpointStatus:
    """The status of an endpoint that cannot be worked on now: all stays as it is, and the conditions say why."""
    kept = [each for each in status.conditions if each.type not in ("Ready", "Reconciling", "Stalled")]
    wanted = [*of_summary(summary), *(Wanted(each.type, each.status, each.reason, each.message) for each in kept)]
    return status.model_copy(
        update={
            "observed_generation": generation,
            "phase": status.phase or "Empty",
            "message": summary.message[:MAXIMUM_MESSAGE],
            "next": what_holds(summary),
            "conditions": stamped(wanted, before=status.conditions, generation=generation, now=now),
        }
    )


def _told(*, before: ModelEndpointStatus, new: ModelEndpointStatus) -> tuple[Event, ...]:
    """Tell whoever has just asked for something that it has no effect, or stands in the way, once each."""
    known = {(each.reason, each.message) for each in before.conditions}
    found = [each for each in new.conditions if each.status == "True" and _is_told(each)]
    return tuple(
        Event(type="Warning", reason=each.reason if each.type == "Stalled" else each.type, message=each.message)
        for each in found
        if (each.reason, each.message) not in known
    )


def _is_told(condition: Condition) -> bool:
    taken = (condition.type, condition.reason) == ("Stalled", Reason.NAME_TAKEN)
    return taken or condition.type in (Reason.REQUEST_VOID, Reason.CONTESTED)


# -- conditions -------------------------------------------------------------------------------------------------------


def _conditions(
    *, observed: ObservedEndpoint, status: ModelEndpointStatus, summary: Summary, contested: tuple[str, ...]
) -> list[Condition]:
    stable = status.stable
    unserved = observed.why_unserved(stable) if stable else (Reason.NO_VERSION, "no version is served yet")
    if stable is not None and unserved is not None and summary.state == "Ready":
        summary = replace(summary, state="Reconciling", reason=unserved[0])
    wanted = of_summary(summary)
    if stable is not None and unserved is None:
        wanted.append(Wanted("Available", "True", Reason.SERVING, f"{stable.name} answers"))
    elif unserved is not None:
        wanted.append(Wanted("Available", "False", *unserved))
    phase = phase_of(observed=observed, status=status)
    if phase == "AwaitingApproval":
        wanted.append(Wanted("AwaitingApproval", "True", Reason.MANUAL_APPROVAL, summary.message))
    elif status.held is not None and not passes(status, uid=status.held.uid, hold=hold_of(status.held)):
        words = f"{status.held.name}: {held_words(status, status.held)}"
        wanted.append(Wanted("AwaitingApproval", "True", Reason.INCONCLUSIVE, words))
    if phase == "Paused":
        wanted.append(Wanted("Paused", "True", summary.reason, summary.message))
    void = void_decisions(observed.endpoint.model_copy(update={"status": status}))
    if void:
        words = "; ".join(f"{GROUP}/{decision} is void: {why}" for decision, why in void.items())
        wanted.append(Wanted(Reason.REQUEST_VOID, "True", Reason.ANOTHER_VERSION, words))
    if contested:
        wanted.append(Wanted(Reason.CONTESTED, "True", Reason.CHANGED_BY_OTHERS, "; ".join(contested)))
    last = status.versions[-1] if status.versions else None
    if last is not None and last.outcome == "RolledBack":
        why = Reason.REGRESSION if last.by == "operator" else Reason.ROLLED_BACK
        wanted.append(Wanted("RolledBack", "True", why, f"{last.name}: {last.reason} (by {last.by})"))
    before, generation = observed.endpoint.status.conditions, observed.endpoint.metadata.generation
    return stamped(wanted, before=before, generation=generation, now=observed.now)


# -- what to write ----------------------------------------------------------------------------------------------------


def _worth_writing(
    *, before: ModelEndpointStatus, new: ModelEndpointStatus, now: datetime
) -> tuple[bool, float | None]:
    """Whether to write now; else after how many seconds to look again at what was held back (None: nothing was)."""
    old_document, new_document = before.to_dict(), new.to_dict()
    if old_document == new_document:
        return False, None
    if _calm(old_document) != _calm(new_document):
        return True, None
    last = before.analysis_time
    due = after(last, _FLOW_SECONDS) if last is not None else now
    return (True, None) if now >= due else (False, seconds_until(due=due, now=now))


def _calm(document: dict[str, Any]) -> dict[str, Any]:
    """Without what flows; verdicts and the stage do not flow."""
    kept = {name: value for name, value in document.items() if name not in _FLOWING}
    step = document.get("step") or {}
    kept["step"] = {name: value for name, value in step.items() if name != "samples"}
    kept["verdicts"] = [row["verdict"] for row in document.get("analysis") or ()]
    return kept


def _facts(status: ModelEndpointStatus) -> dict[str, Any]:
    """What children and routes follow from."""
    document = status.to_dict()
    step = document.get("step") or {}
    names = ("stable", "candidate", "previous", "plan", "versions", "comparisons")
    return {name: document.get(name) for name in names} | {
        "stage": [step.get(key) for key in ("stage", "index", "held", "accepted")]
    }


def _analysis(*, observed: ObservedEndpoint, draft: Draft, now: datetime, write: bool) -> tuple[Manifest, ...]:
    """The state of the live statistics, written with the status, and not oftener: what is not written is counted again
    from the same reports."""
    if draft.analysis is None or draft.analysis == observed.analysis or not write:
        return ()
    name = analysis_name(observed.endpoint.metadata.name)
    wanted: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata_of(endpoint=observed.endpoint, name=name, component="analysis"),
        "data": {ANALYSIS_KEY: json.dumps(draft.analysis.to_dict(), sort_keys=True)},
    }
    if ("ConfigMap", name) in observed.foreign:
        return ()
    settling = settled(wanted=wanted, live=observed.child(wanted), now=now)
    return (settling.apply,) if settling.apply is not None else ()
