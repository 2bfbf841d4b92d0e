"""A machine: one init process with namespaces of its own for network, mounts and processes.

Killing the init ends every process of the machine at once and takes its mounts and links with it, so a power cut is
honest and a clean-up cannot forget anything but empty cgroups, which `remove_cgroups` takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness.errors import HarnessError
from tests.harness.processes import Daemon, ProcessId, kill
from tests.patience import HANGS_S

_CGROUPS = Path("/sys/fs/cgroup")
_CLONE_NEWNET = 0x40000000
# Orphans of the machine become children of its init, which ignores SIGCHLD so that the kernel reaps them.
_INIT = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    signal.pause()
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine named `name` of the environment in `folder`."""

    name: str
    folder: Path

    @property
    def _init(self) -> Daemon:
        # The record holds unshare's child, which is the init of the new pid namespace.
        return Daemon(
            name=self.name,
            folder=self.folder,
            prefix=["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private"],
            command=["sh", "-c", 'mount --make-rshared / && exec "$@"', "sh", sys.executable, "-S", "-E", "-c", _INIT],
        )

    def boot(self) -> None:
        """Start its init; the loopback link is up, forwarding is on, nothing else."""
        self._init.start()
        self.run("ip", "link", "set", "lo", "up")
        self.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def cut_power(self) -> None:
        """Kill it with all its processes."""
        process = self._init.process()
        if process is not None:
            kill([process])

    def process(self) -> ProcessId:
        """Its init; raises `HarnessError` when it is off."""
        process = self._init.process()
        if process is None:
            raise HarnessError(f"machine {self.name} is not running\n{self._init.log_tail()}")
        return process

    def is_on(self) -> bool:
        """Whether it runs."""
        return self._init.alive()

    def prefix(self) -> list[str]:
        """What to put before a command to run it on this machine."""
        return ["nsenter", f"--target={self.process().pid}", "--net", "--mount", "--pid", "--"]

    def network_prefix(self) -> list[str]:
        """The same for a command that only shares the machine's network and remains a process of the host."""
        return ["nsenter", f"--net=/proc/{self.process().pid}/ns/net", "--"]

    def daemon(self, name: str, *command: str | Path) -> Daemon:
        """A long-running process on this machine, not yet started."""
        return Daemon(name=name, command=command, folder=self.folder, prefix=self.prefix())

    def run(self, *command: str | Path, text: str | None = None, timeout_s: float = HANGS_S) -> str:
        """Run a short command on this machine and return its output; `HarnessError` with its words when it fails."""
        result = subprocess.run(
            [*self.prefix(), *map(str, command)],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if result.returncode != 0:
            raise HarnessError(f"on {self.name}: {' '.join(map(str, command))} failed: {result.stderr.strip()}")
        return result.stdout

    @contextmanager
    def network(self) -> Iterator[None]:
        """The calling thread, and what it starts, is in this machine's network."""
        own = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        before = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(f"/proc/{self.process().pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _set_network(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _set_network(before)
        finally:
            os.close(before)


def _set_network(descriptor: int) -> None:
    """setns(2); the `os` module has it from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _hierarchies() -> list[Path]:
    """The root of each cgroup hierarchy: one on cgroup v2, one a controller on v1."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [folder for folder in _CGROUPS.iterdir() if (folder / "cgroup.procs").exists()]


def make_cgroups(name: str) -> None:
    """Make the empty cgroup `name` (a path) in every hierarchy."""
    for hierarchy in _hierarchies():
        folder = hierarchy
        for part in name.strip("/").split("/"):
            folder = folder / part
            folder.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # on v1 a cpuset without them takes no process
                if (folder / setting).exists() and not (folder / setting).read_text().strip():
                    (folder / setting).write_text((folder.parent / setting).read_text())


def remove_cgroups(name: str, *, timeout_s: float = 10) -> None:
    """Remove the cgroup `name` with what is below it; the kernel may need a moment after the last process ended."""
    deadline = time.monotonic() + timeout_s
    while remaining := [folder for root in _hierarchies() if (folder := root / name.strip("/")).exists()]:
        for folder in remaining:
            for below, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):
                    Path(below).rmdir()
        if time.monotonic() > deadline:
            busy = [str(folder) for folder in remaining if folder.exists()]
            if busy:
                raise HarnessError(f"cgroups still in use after {timeout_s:g} s: {', '.join(busy)}")
        time.sleep(0.02)
