"""Which versions of the libraries are at work, for digests and reports."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import metadata


def versions(names: Iterable[str]) -> dict[str, str]:
    """Package -> version."""
    return {name: _version(name) for name in names}


@cache
def _version(name: str) -> str:
    return metadata.version(name)  # reads and parses a file each time
