"""Processes of pods as the host sees them: what `kubectl` cannot do to them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path


def processes(*, pod_uids: Collection[str], module: bytes) -> list[int]:
    """Pids of the processes of these pods that run a Python module of ours, e.g. b"finetune_trainer"."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if module in _argv(pid) and any(uid in _cgroup(pid) for uid in pod_uids)]


def kill(pids: Collection[int]) -> None:
    """kill -9; what is gone already is no error."""
    for pid in pids:
        _send(pid, signal.SIGKILL)


def freeze(pids: Collection[int]) -> Callable[[], None]:
    """Stop processes as they are (SIGSTOP); gives what lets them go on."""
    for pid in pids:
        _send(pid, signal.SIGSTOP)

    def thaw() -> None:
        for pid in pids:
            _send(pid, signal.SIGCONT)

    return thaw


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _cgroup(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().replace("_", "-")
    except OSError:
        return ""


def _argv(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
