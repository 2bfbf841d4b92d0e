"""How many processor cores this container may use, which its machine's number of cores does not say."""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(*, quota: Path = _QUOTA) -> int:
    """Cores that this process may run on, at least 1: its affinity, or the container's CPU limit where that is less.

    The limit is a quota of time (cgroup v2: microseconds per period). More threads than it allows spend each period's
    time early, and then all stand still together.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        allowed, period = quota.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if allowed == "max" else max(1, min(cores, math.ceil(int(allowed) / int(period))))


def limit_threads(environment: MutableMapping[str, str]) -> None:
    """Settings for OpenMP, unless they are made already: one thread a core, which waits without spinning.

    Call before torch is imported. Where others share the cores, spinning threads keep from running the very ones that
    they wait for.
    """
    environment.setdefault("OMP_NUM_THREADS", str(available_cores()))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
