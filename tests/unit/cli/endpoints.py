"""Endpoints at different moments of a rollout, for what the command line says about them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.unit.cli.jobs import at
from tests.wrong_manifests import valid

from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointSpec
from finetune_operator.core.conditions import Summary
from finetune_operator.endpoint.next_steps import next_of
from finetune_operator.endpoint.rollout.plan import resolve, stored

V1, V2, V3 = (f"7a6f5f0e-0000-4000-8000-00000000000{number}" for number in (1, 2, 3))
EPOCH = {"epoch": 7, "acknowledged": 2, "gateways": 2}
NOW = datetime.fromisoformat(at(600))
BEGAN = at(300)
"""When the current step began: five minutes before NOW."""


def served(name: str, uid: str) -> dict[str, Any]:
    """A version as the status records it."""
    return {"name": name, "uid": uid, "digest": f"sha256:{name[-1] * 64}", "revision": f"router-{name}", "since": at(0)}


def outcome(name: str, uid: str, what: str, *, reason: str = "proven", by: str = "operator") -> dict[str, Any]:
    """What became of a version."""
    return {"name": name, "uid": uid, "outcome": what, "reason": reason, "by": by, "time": at(10)}


def given(hold: str, *, used: bool = False) -> dict[str, Any]:
    """An approval of v2 by ann, as the operator took note of it."""
    return {"uid": V2, "by": "ann", "hold": hold, "used": used}


def row(metric: str, *, samples: int, verdict: str = "Inconclusive", reason: str | None = None) -> dict[str, Any]:
    """A line of the analysis."""
    seen = {"candidate": 0.01, "baseline": 0.012, "low": -0.03, "high": 0.02}
    return {"metric": metric, "samples": samples, "verdict": verdict, "reason": reason, **seen}


def step(stage: str, *, index: int = 0, **more: Any) -> dict[str, Any]:
    """The current step, begun five minutes ago."""
    return {"stage": stage, "index": index, "name": stage.lower(), "startTime": BEGAN, "sinceEpoch": 7, **more}


def endpoint(
    *,
    rollout: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    reason: str = "",
    stalled: bool = False,
    now: datetime = NOW,
    waits_for: tuple[str, ...] = (),
    pin: str = "",
    **status: Any,
) -> ModelEndpoint:
    """An endpoint `router` with this status, and what the operator says at `now` of what comes next.

    `rollout`: changes of spec.rollout, in force for the rollout under way.
    """
    manifest = valid("endpoint")
    manifest["metadata"] |= {
        "namespace": "ml",
        "uid": "e0",
        "generation": 1,
        "creationTimestamp": at(0),
        "annotations": annotations or {},
    }
    manifest["spec"]["rollout"] |= rollout or {}
    manifest["spec"] |= {"version": pin} if pin else {}
    message = str(status.get("message", ""))
    conditions = [
        condition("Ready", "False", reason or "Serving", message),
        condition("Available", "True", "Serving", ""),
    ]
    if stalled:
        conditions.append(condition("Stalled", "True", reason, message))
    complete = {"observedGeneration": 1, "conditions": conditions, "routes": EPOCH, **status}
    if "step" in status:
        plan = resolve(spec=ModelEndpointSpec.model_validate(manifest["spec"]), fast=False)
        complete["plan"] = stored(plan).to_dict()
    found = ModelEndpoint.from_object({**manifest, "status": complete})
    summary = Summary(state="Stalled" if stalled else "Reconciling", reason=reason or "Serving", message=message)
    following = next_of(found, status=found.status, summary=summary, now=now, waits_for=waits_for, due=NOW)
    return found.model_copy(update={"status": found.status.model_copy(update={"next": following})})


def condition(type_: str, status: str, reason: str, message: str) -> dict[str, Any]:
    """A condition."""
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": at(5)}


def idle(**more: Any) -> ModelEndpoint:
    """v2 serves, after v1."""
    known = {
        "phase": "Idle",
        "message": "v2 serves all requests",
        "stable": served("v2", V2),
        "versions": [outcome("v1", V1, "Promoted"), outcome("v2", V2, "Promoted")],
    }
    return endpoint(**{**known, **more})


def trying(stage: str, *, phase: str, **more: Any) -> ModelEndpoint:
    """v1 serves, v2 is tried. `step`: more about the step."""
    about = more.pop("step", {})
    known = {
        "phase": phase,
        "reason": phase,
        "message": f"v2 in {stage}",
        "stable": served("v1", V1),
        "candidate": served("v2", V2),
        "versions": [outcome("v1", V1, "Promoted")],
        "analysisTime": at(600),
        "step": step(stage, **about),
    }
    return endpoint(**{**known, **more})


def shadowing(**more: Any) -> ModelEndpoint:
    """In shadow: 212 of 300 pairs after five minutes."""
    rows = [row("error_rate", samples=212, reason="212 of 300 samples"), row("quality", samples=230)]
    about = {"percent": 20, "samples": 212, "needed": 300, **more.pop("step", {})}
    return trying("Shadow", **{"phase": "Shadowing", "analysis": rows, "step": about, **more})


def canary(**more: Any) -> ModelEndpoint:
    """At step five: 300 of 300 samples, but minDurationSeconds (600) is not over."""
    rows = [row("error_rate", samples=300, verdict="Pass"), row("quality", samples=300, verdict="Pass")]
    about = {"index": 1, "name": "five", "percent": 5, "samples": 300, "needed": 300, **more.pop("step", {})}
    return trying("Canary", **{"phase": "Canary", "analysis": rows, "step": about, **more})


def awaiting(**more: Any) -> ModelEndpoint:
    """All steps passed; a person must approve."""
    about = {"index": 2, "percent": 25, **more.pop("step", {})}
    return trying("Approval", **{"phase": "AwaitingApproval", "step": about, **more})


def guarding(**more: Any) -> ModelEndpoint:
    """v2 is promoted and watched for an hour, v1 stays warm. `stage`: another one."""
    known = {
        "phase": "Guarding",
        "reason": "Guarding",
        "stable": served("v2", V2),
        "previous": served("v1", V1),
        "versions": [outcome("v1", V1, "Promoted"), outcome("v2", V2, "Promoted", by="ann")],
        "analysisTime": at(600),
        "step": step(more.pop("stage", "Guard"), percent=100, **more.pop("step", {})),
    }
    return endpoint(**{**known, **more})


def rolling_back(**more: Any) -> ModelEndpoint:
    """v2 got worse under guard; one gateway has not taken the new routes."""
    versions = [
        outcome("v1", V1, "Promoted"),
        outcome("v2", V2, "Promoted"),
        outcome("v2", V2, "RolledBack", reason="error_rate: up"),
    ]
    known = {
        "phase": "RollingBack",
        "reason": "RollingBack",
        "stable": served("v1", V1),
        "versions": versions,
        "routes": {"epoch": 8, "acknowledged": 1, "gateways": 2},
        "step": step("RollingBack"),
    }
    return endpoint(**{**known, **more})
