"""Long-running processes that are known by pid and start time, so that a recycled pid is never signalled.

A `Daemon` leaves `<folder>/processes/<name>.json`; any other process (`make cluster-down`, the guard of a test run that
was killed) finds it by that file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.harness.errors import HarnessError
from tests.harness.waiting import wait_until

LOG_TAIL_LINES = 25


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process, told from any later one with the same pid."""

    pid: int
    started: int
    """Clock ticks since boot, field 22 of proc_pid_stat(5)."""

    @classmethod
    def of(cls, *, pid: int) -> ProcessId:
        """The running process `pid`; raises `ProcessLookupError` when there is none."""
        stat = _stat(pid)
        if stat is None:
            raise ProcessLookupError(pid)
        return cls(pid=pid, started=stat[1])

    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.started and stat[0] not in "ZX"

    def send(self, number: signal.Signals) -> None:
        """Signal it if it still runs."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the command before it may hold spaces and brackets
    return fields[0], int(fields[19])


def kill(processes: Iterable[ProcessId], *, timeout_s: float = 10) -> None:
    """SIGKILL all and wait until they are gone."""
    remaining = list(processes)
    for process in remaining:
        process.send(signal.SIGKILL)
    wait_until(
        lambda: not any(process.alive() for process in remaining),
        what=f"end of the killed processes {[process.pid for process in remaining]}",
        timeout_s=timeout_s,
        interval_s=0.02,
    )


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A component of an environment: its command, its log, and its process while it runs."""

    name: str
    command: Sequence[str | Path]
    folder: Path
    """The environment's state folder."""
    prefix: Sequence[str] = ()
    """What puts the command into a machine's namespaces (see `machine.py`)."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Standard output and error of all its starts."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def _record(self) -> Path:
        return self.folder / "processes" / f"{self.name}.json"

    def process(self) -> ProcessId | None:
        """Its process, or None when it does not run."""
        return read_record(self._record)

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process() is not None

    def start(self) -> None:
        """Start it; raises `HarnessError` when it runs already or ends at once."""
        if self.alive():
            raise HarnessError(f"{self.name} runs already; stop it first")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            wrapper = subprocess.Popen(
                [*self.prefix, *map(str, self.command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.environment},
                cwd="/",
            )
        pid = self._forked_child(wrapper) if self.prefix else wrapper.pid
        try:
            process = ProcessId.of(pid=pid)
        except ProcessLookupError as error:
            raise HarnessError(f"{self.name} ended at once\n{self.log_tail()}") from error
        write_record(self._record, process)
        wrapper.returncode = 0  # it outlives this object on purpose; subprocess would warn about it

    def stop(self, *, number: signal.Signals = signal.SIGTERM, timeout_s: float = 10) -> None:
        """Signal it and wait for its end, with SIGKILL after `timeout_s`. Nothing happens when it does not run."""
        process = self.process()
        if process is not None:
            process.send(number)
            deadline = time.monotonic() + timeout_s
            while process.alive() and time.monotonic() < deadline:
                time.sleep(0.02)
            kill([process])
        self._record.unlink(missing_ok=True)

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        self._require().send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._require().send(signal.SIGCONT)

    def require_alive(self) -> None:
        """Raise `HarnessError` with the log's tail when it has ended."""
        self._require()

    def log_tail(self) -> str:
        """The last lines of its log, under a heading."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"--- {self.log} (last lines) ---", *lines[-LOG_TAIL_LINES:]])

    def _require(self) -> ProcessId:
        process = self.process()
        if process is None:
            raise HarnessError(f"{self.name} does not run\n{self.log_tail()}")
        return process

    def _forked_child(self, wrapper: subprocess.Popen[bytes]) -> int:
        """nsenter forks to enter a pid namespace: the daemon is its only child."""

        def find() -> int | None:
            if wrapper.poll() is not None:
                raise HarnessError(f"{self.name} ended at once with {wrapper.returncode}\n{self.log_tail()}")
            children = Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children").read_text().split()
            return int(children[0]) if children else None

        return wait_until(find, what=f"start of {self.name}", interval_s=0.002)


def write_record(path: Path, process: ProcessId) -> None:
    """Remember a process in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(process)))
    temporary.replace(path)


def read_record(path: Path) -> ProcessId | None:
    """The process of a file that `write_record` wrote, if it still runs."""
    try:
        process = ProcessId(**json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return process if process.alive() else None
