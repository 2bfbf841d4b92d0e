"""Ending what a layer of tests leaves behind: mounts, and processes, also those in sessions of their own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

_SUBREAPER = 36  # prctl(2), PR_SET_CHILD_SUBREAPER
_POLL_SECONDS = 0.2


def adopt_orphans() -> None:
    """Make this process the parent of whatever its descendants leave behind, so that it can be found."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)


def end_processes(*, besides: Collection[int], patience_s: float) -> list[str]:
    """Wait for descendants of this process to end, but for those in `besides`; kill the rest and return their commands.

    The patience is for those that clean up after others that were killed (tests/harness/guard.py).
    """
    due = time.monotonic() + patience_s
    while (left := _descendants(os.getpid(), besides=besides)) and time.monotonic() < due:
        time.sleep(_POLL_SECONDS)
    killed: list[str] = []
    while left := _descendants(os.getpid(), besides=besides):
        killed += [_command(pid) for pid in left]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
        if time.monotonic() > due + patience_s:
            break  # in the kernel's hands; nothing more can be done about it
    return sorted(set(killed))


def unmount_below(folder: Path) -> None:
    """Unmount what is mounted below a folder; tests mount small disks there, and a killed one leaves them."""
    below = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((each for each in below if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", point], check=False)


def _descendants(pid: int, *, besides: Collection[int]) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if child in besides or _reaped(child):
                    continue
                found += [child, *_descendants(child, besides=besides)]
    return found


def _reaped(pid: int) -> bool:
    """Whether a process had ended, and is now forgotten; only a parent can do that."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:160]
    return ""
