"""How much memory this container may still take, which its machine's memory does not say."""

from __future__ import annotations

from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/memory.max")
_STATISTICS = Path("/sys/fs/cgroup/memory.stat")
_MACHINE = Path("/proc/meminfo")


def available(*, limit: Path = _LIMIT, statistics: Path = _STATISTICS, machine: Path = _MACHINE) -> int:
    """Bytes: what the machine has left, or what the container's limit (cgroup v2) leaves where that is less.

    The page cache counts as free: the kernel gives it up when memory is wanted.
    """
    left = _number(machine, "MemAvailable:") * 1024
    try:
        allowed = limit.read_text().strip()
        return left if allowed == "max" else max(0, min(left, int(allowed) - _number(statistics, "anon")))
    except (OSError, ValueError):
        return left


def _number(file: Path, name: str) -> int:
    with file.open() as lines:
        return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
