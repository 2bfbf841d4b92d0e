"""Runs one container as a process, ends all of it with whoever started it, and records how it ended.

    python -I -S shim.py PARENT RECORD GRACE_SECONDS COMMAND...

What containerd's shim is to a container, but for one thing: nothing outlives PARENT, the `finetune` that started it.
When that ends, in any way, the kernel sends SIGTERM here. SIGTERM is passed on, so that training saves a checkpoint;
after the grace period, and at SIGALRM, all is killed. When the container's first process ends, all that it has started
ends too, as in a container. When this process is killed, the kernel sends the container SIGTERM.

RECORD is an open file, locked for as long as this runs; it holds JSON at the end. Environment, folder and log are those
that this process was given. It stands alone, on the standard library, so that it starts in no time.
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

# Written before the container runs and filled in afterwards in place: the end can be recorded on a full disk.
RECORD_BYTES = 1024
_CANNOT_RUN = 128
_LONGEST_MESSAGE = 500
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(*, parent: int, record: int, grace_seconds: int, command: list[str]) -> None:
    """Run the command until it has ended."""
    os.set_inheritable(record, False)  # noqa: FBT003 - positional only
    os.pwrite(record, b" " * RECORD_BYTES, 0)
    os.fsync(record)
    started = _now()
    # SIGTERM waits until there is somebody to pass it on to.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGALRM})
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _end_with(parent)
    try:
        child = _start(command)
    except OSError as error:
        message = str(error)[:_LONGEST_MESSAGE]
        _write(record, {"exitCode": _CANNOT_RUN, "reason": "StartError", "message": message, "startedAt": started})
        return

    def ask(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        signal.alarm(max(1, grace_seconds))

    def kill(*_: object) -> None:
        _kill_group(child)
        signal.alarm(1)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGALRM, kill)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGALRM})
    code = _wait_for(child)
    signal.alarm(0)
    _kill_descendants(child)
    end: dict[str, object] = {"exitCode": code if code >= 0 else 128 - code, "startedAt": started}
    _write(record, end if code >= 0 else {**end, "signal": -code})


def _start(command: list[str]) -> int:
    """Start the container in a session of its own; its PID."""
    us = os.getpid()

    def ready() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGALRM})
        _end_with(us)

    # No Popen object stays: _wait_for reaps.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=ready).pid


def _end_with(parent: int) -> None:
    """Be sent SIGTERM when the parent ends, also if that was a moment ago."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


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


def _write(record: int, end: dict[str, object]) -> None:
    content = json.dumps({**end, "finishedAt": _now()}).encode()
    os.pwrite(record, content.ljust(RECORD_BYTES), 0)
    os.fsync(record)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    main(parent=int(sys.argv[1]), record=int(sys.argv[2]), grace_seconds=int(sys.argv[3]), command=sys.argv[4:])
