"""Keeps an attempt away from the nodes on which the last ones ended.

A node whose device plugin is broken takes in no pod, so it stays empty, and an empty node is what the scheduler likes
best. Such a node is avoided where that is possible after the first end, and strictly after the second.
https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#node-affinity
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_WEIGHT = 100


def forbidden(nodes: Sequence[str]) -> list[str]:
    """Nodes that had their second chance."""
    return sorted({node for node in nodes if nodes.count(node) > 1})


def avoiding(affinity: dict[str, Any] | None, *, nodes: Sequence[str]) -> dict[str, Any] | None:
    """The user's affinity, and ours against the nodes of the last ends."""
    if not nodes:
        return affinity
    never = forbidden(nodes)
    rather_not = sorted(set(nodes) - set(never))
    affinity = dict(affinity or {})
    of_nodes = dict(affinity.get("nodeAffinity") or {})
    if never:
        required = of_nodes.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
        # One of the terms must match as a whole, so ours belongs into each.
        terms = [_without(term, never) for term in required.get("nodeSelectorTerms") or [{}]]
        of_nodes["requiredDuringSchedulingIgnoredDuringExecution"] = {**required, "nodeSelectorTerms": terms}
    if rather_not:
        wishes = of_nodes.get("preferredDuringSchedulingIgnoredDuringExecution") or []
        ours = {"weight": _WEIGHT, "preference": _without({}, rather_not)}
        of_nodes["preferredDuringSchedulingIgnoredDuringExecution"] = [*wishes, ours]
    return {**affinity, "nodeAffinity": of_nodes}


def _without(term: dict[str, Any], nodes: Sequence[str]) -> dict[str, Any]:
    # Of fields, only the name can be asked for, and only one at a time.
    ours = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    return {**term, "matchFields": [*(term.get("matchFields") or ()), *ours]}
