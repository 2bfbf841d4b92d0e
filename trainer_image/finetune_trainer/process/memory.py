"""How much memory this container may still take, which its machine's memory does not say."""

from __future__ import annotations

import resource
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/meminfo")
_LIMITS = (
    ("memory.max", "memory.stat", "anon"),  # cgroup v2
    ("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss"),  # v1
)
"""Where a container reads its limit, and what it has taken of it."""


def available(*, groups: Path = _GROUPS, machine: Path = _MACHINE) -> int:
    """Bytes: what the machine has left, or what the container's limit leaves where that is less.

    The page cache counts as free: the kernel gives it up when memory is wanted.
    """
    left = _number(machine, "MemAvailable:") * 1024
    for limit, statistics, taken in _LIMITS:
        try:
            allowed = (groups / limit).read_text().strip()
            if allowed != "max":
                left = max(0, min(left, int(allowed) - _number(groups / statistics, taken)))
        except (OSError, ValueError):
            continue
    return left


def below_peak() -> int:
    """Bytes that this process has taken at its peak beyond what it takes now: it may again."""
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - now)


def _number(file: Path, name: str) -> int:
    with file.open() as lines:
        return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
