"""The wrong manifests of tests/data/wrong_manifests, and what must be said about each.

A case changes a manifest that is right (`base`: job, version or endpoint, of tests/data/valid_*.yaml) by dotted paths
(`set`, `remove`). With `update`, the right one exists and is changed into the wrong one. `expect` holds each objection
as field and message, in the apiserver's words.
"""

from __future__ import annotations

import copy
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, kw_only=True)
class WrongManifest:
    """One case. `before` is the existing object of an update."""

    name: str
    manifest: Manifest
    before: Manifest | None
    expected: frozenset[tuple[str, str]]


def valid(kind: str) -> Manifest:
    """The right manifest: `job`, `version` or `endpoint`."""
    return copy.deepcopy(_read(DATA / f"valid_{kind}.yaml"))


def load_cases() -> list[WrongManifest]:
    """All cases, in the order of their files."""
    files = sorted((DATA / "wrong_manifests").glob("*.yaml"))
    return [_case(group=file.stem, entry=entry) for file in files for entry in _read(file)]


@functools.cache
def _read(path: Path) -> Any:
    """What a file says, by the parser in C: it is asked for hundreds of times."""
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - safe, too


def _case(*, group: str, entry: dict[str, Any]) -> WrongManifest:
    right = valid(entry.get("base", "job"))
    manifest = copy.deepcopy(right)
    for path, value in (entry.get("set") or {}).items():
        _set(manifest, path, copy.deepcopy(value))
    for path in entry.get("remove") or ():
        _remove(manifest, path)
    return WrongManifest(
        name=f"{group}: {entry['case']}",
        manifest=manifest,
        before=right if entry.get("update") else None,
        expected=frozenset((item["field"], item["message"]) for item in entry.get("expect") or ()),
    )


def _set(manifest: Manifest, path: str, value: object) -> None:
    parent, last = _parent(manifest, path)
    if isinstance(last, int) and last == len(parent):
        parent.append(value)
    else:
        parent[last] = value


def _remove(manifest: Manifest, path: str) -> None:
    parent, last = _parent(manifest, path)
    del parent[last]


def _parent(manifest: Manifest, path: str) -> tuple[Any, str | int]:
    *steps, last = [int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", path)]
    node: Any = manifest
    for step in steps:
        node = node[step]
    return node, last
