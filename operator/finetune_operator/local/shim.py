"""Runs one container as a process and remembers how it ended, also when `finetune` is not there to see it.

    python -I -S shim.py FOLDER

What containerd's shim is to a container: FOLDER/orders.json says what to run; FOLDER/process.json, written when it
runs, who runs; FOLDER/ended.json how it ended. SIGTERM is passed on; after the grace period everything is killed. When
the container's first process ends, all that it has started ends too, as in a container. When this process is killed,
the kernel sends the container SIGTERM.

It stands alone, on the standard library, so that it starts in no time and holds no memory to speak of.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

ORDERS_FILE = "orders.json"
PROCESS_FILE = "process.json"
ENDED_FILE = "ended.json"
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
# Written before the container runs and filled in afterwards in place: the end can be recorded on a full disk.
ENDED_BYTES = 1024
CANNOT_RUN = 128
_LONGEST_MESSAGE = 500
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(folder: Path) -> None:
    """Run the container that the folder's orders describe, until it has ended."""
    orders = json.loads((folder / ORDERS_FILE).read_text())
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ended = os.open(folder / ENDED_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.pwrite(ended, b" " * ENDED_BYTES, 0)
    os.fsync(ended)
    stop = _Stop(grace_seconds=orders["graceSeconds"])
    signal.signal(signal.SIGTERM, stop.ask)
    signal.signal(signal.SIGALRM, stop.kill)
    started = _now()
    parent = os.getpid()

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with Path(orders["log"]).open("ab", buffering=0) as log:
            child = subprocess.Popen(
                orders["argv"],
                env=orders["env"],
                cwd=orders["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
    except OSError as error:
        message = str(error)[:_LONGEST_MESSAGE]
        _record(ended, {"exitCode": CANNOT_RUN, "reason": "StartError", "message": message, "startedAt": started})
        return
    process = {
        "boot": BOOT_FILE.read_text().strip(),
        "shim": _identity(os.getpid()),
        "container": _identity(child.pid),
        "startedAt": started,
    }
    temporary = folder / f"{PROCESS_FILE}.tmp"
    temporary.write_text(json.dumps(process))
    temporary.replace(folder / PROCESS_FILE)
    stop.started(child.pid)
    code = _wait_for(child.pid)
    signal.alarm(0)
    _kill_descendants(child.pid)
    end: dict[str, object] = {"exitCode": code if code >= 0 else 128 - code, "startedAt": started}
    if code < 0:
        end["signal"] = -code
    _record(ended, end)


class _Stop:
    """SIGTERM for the container's first process, SIGKILL for all of them when the grace period is over."""

    def __init__(self, *, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._pid: int | None = None
        self._asked = False

    def started(self, pid: int) -> None:
        self._pid = pid
        if self._asked:
            self.ask(signal.SIGTERM, None)

    def ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
        signal.alarm(max(1, int(self._grace_seconds)))

    def kill(self, number: int, frame: FrameType | None) -> None:
        if self._pid is not None:
            _kill_group(self._pid)
        signal.alarm(1)


def _wait_for(pid: int) -> int:
    """The exit code of a child, negative for a signal. Others that became ours meanwhile are reaped."""
    while True:
        found, status = os.waitpid(-1, 0)
        if found == pid:
            return os.waitstatus_to_exitcode(status)


def _kill_descendants(pid: int) -> None:
    """Kill what the container has left behind: its group, and whatever in other sessions has become our child."""
    _kill_group(pid)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        for child in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _identity(pid: int) -> dict[str, int]:
    """A process for good: numbers are used again, starting times (in ticks since the boot) are not."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return {"pid": pid, "startTicks": int(fields[19])}


def _record(descriptor: int, end: dict[str, object]) -> None:
    content = json.dumps({**end, "finishedAt": _now()}).encode()
    os.pwrite(descriptor, content.ljust(ENDED_BYTES), 0)
    os.fsync(descriptor)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
