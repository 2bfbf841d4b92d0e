"""What the pods of servers and gateways have in common: they stop late, and apart from each other."""

from __future__ import annotations

from typing import Any

BUSY_SECONDS = 30
"""What a process may take to say that it lives: a kubelet restarts what hangs, not what is slow on a busy node."""
STOP_HOOK: dict[str, Any] = {"preStop": {"sleep": {"seconds": 5}}}
"""Before SIGTERM: the time that nodes take to hear that a Service does not lead here any more (Kubernetes 1.30)."""


def spread(matched: dict[str, str]) -> list[dict[str, Any]]:
    """Pods of a kind on different nodes and in different zones, where there are any: a lost one takes few along."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": matched},
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]
