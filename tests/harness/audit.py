"""When was what written: the apiserver's own audit log, to the microsecond. Objects themselves only tell the second."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Request",
            "verbs": ["create", "update", "patch"],
            "resources": [{"group": "", "resources": ["configmaps"]}],
        },
        {"level": "None"},
    ],
}


@dataclass(frozen=True, kw_only=True)
class Write:
    """One write of a ConfigMap that the apiserver took."""

    at: float
    """When its request arrived, in seconds since 1970."""
    body: dict[str, Any]


def prepare(folder: Path) -> None:
    """Write the policy for the apiserver of an environment."""
    _policy(folder).write_text(json.dumps(_POLICY))


def options(folder: Path) -> tuple[str, ...]:
    """What kube-apiserver needs to keep the log."""
    return f"--audit-policy-file={_policy(folder)}", f"--audit-log-path={_log(folder)}"


def writes(folder: Path, *, namespace: str, name: str) -> list[Write]:
    """The writes of a ConfigMap so far, oldest first."""
    found = []
    for line in _log(folder).read_text().split("\n")[:-1]:
        event = json.loads(line)
        about = event["objectRef"]
        taken = event.get("responseStatus", {}).get("code", 500) < 300
        if taken and (about.get("namespace"), about.get("name")) == (namespace, name) and "requestObject" in event:
            at = datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
            found.append(Write(at=at, body=event["requestObject"]))
    return sorted(found, key=lambda write: write.at)


def _policy(folder: Path) -> Path:
    return folder / "audit-policy.json"


def _log(folder: Path) -> Path:
    return folder / "logs" / "audit.log"
