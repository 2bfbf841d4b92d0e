"""Containers as processes: start them, find them again, tell them to stop, learn that they have ended.

Each runs under a shim (shim.py), which outlives `finetune`. What a shim has written is all there is to know, so that a
`finetune` that was killed in between sees the same as one that was there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune_operator.local import shim
from finetune_operator.local.files import read_json, write_json

_ASKED_FILE = "asked-to-stop"
_POLL_SECONDS = 0.01
_START_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What to run."""

    argv: list[str]
    env: Mapping[str, str]
    cwd: str
    log: str
    graceSeconds: float  # noqa: N815 - as in the file that the shim reads


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a container ended; times are RFC 3339. `unknown`: its shim was killed, or the machine was switched off."""

    exit_code: int
    signal: int | None = None
    started_at: str | None = None
    finished_at: str | None = None
    reason: str | None = None
    message: str | None = None
    unknown: bool = False


@dataclass(frozen=True, kw_only=True)
class _Process:
    """A process for good: a number and its starting time."""

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(fields[19]) == self.start_ticks and fields[0] not in "ZX"

    def send(self, number: signal.Signals) -> None:
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill_group(self) -> None:
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


class Container:
    """A container that was started in a folder, by this process or by an earlier one."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder

    @classmethod
    async def start(cls, *, folder: Path, orders: Orders) -> Container:
        """Start it and wait until it runs, or has ended already. Raises OSError where the disk is full."""
        write_json(folder / shim.ORDERS_FILE, asdict(orders))
        with (folder / "shim.log").open("wb") as errors:
            process = subprocess.Popen(  # noqa: ASYNC220 - forks and returns
                [sys.executable, "-I", "-S", shim.__file__, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd="/",
                start_new_session=True,
            )
        started = cls(folder=folder)
        for _ in range(int(_START_SECONDS / _POLL_SECONDS)):
            if started.started_at is not None or started.has_ended or process.poll() is not None:
                break
            await asyncio.sleep(_POLL_SECONDS)
        return started

    @property
    def exists(self) -> bool:
        """Whether it was ever started here."""
        return (self._folder / shim.ORDERS_FILE).exists()

    @property
    def started_at(self) -> str | None:
        """When its process began, as RFC 3339."""
        content = read_json(self._folder / shim.PROCESS_FILE)
        return content["startedAt"] if content else None

    @property
    def has_ended(self) -> bool:
        """Whether its shim has said how it ended."""
        return read_json(self._folder / shim.ENDED_FILE) is not None

    def ended(self) -> Ended | None:
        """How it ended, None while it runs. A container without its shim is given up: it was told to stop."""
        content = read_json(self._folder / shim.ENDED_FILE)
        if content is not None:
            return Ended(
                exit_code=content["exitCode"],
                signal=content.get("signal"),
                started_at=content["startedAt"],
                finished_at=content["finishedAt"],
                reason=content.get("reason"),
                message=content.get("message"),
            )
        if self._process("shim").is_alive() or self._process("container").is_alive():
            return None
        return Ended(exit_code=128 + signal.SIGKILL, started_at=self.started_at, unknown=True)

    async def wait(self) -> Ended:
        """Wait until it has ended. What a killed shim leaves was told to stop, and gets its time for that."""
        await _gone(self._process("shim"))
        orders = read_json(self._folder / shim.ORDERS_FILE) or {}
        container = self._process("container")
        if container.is_alive():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_gone(container), timeout=orders.get("graceSeconds", 1.0))
            container.kill_group()
            await _gone(container)
        return self.ended() or Ended(exit_code=128 + signal.SIGKILL, unknown=True)

    def stop(self) -> None:
        """SIGTERM once, then SIGKILL after the grace period; the shim sees to both. Not before it has started."""
        asked = self._folder / _ASKED_FILE
        if asked.exists() or self.started_at is None:
            return
        shim_process = self._process("shim")
        if shim_process.is_alive():
            shim_process.send(signal.SIGTERM)
        else:
            self._process("container").send(signal.SIGTERM)
        asked.touch()

    def forget(self) -> None:
        """Make room for another start in the same folder."""
        # The orders last: while they are there, the end that was recorded is known.
        for name in (shim.PROCESS_FILE, _ASKED_FILE, shim.ENDED_FILE, shim.ORDERS_FILE):
            (self._folder / name).unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL now."""
        self._process("container").kill_group()

    def _process(self, which: str) -> _Process:
        content = read_json(self._folder / shim.PROCESS_FILE)
        if not content or content["boot"] != shim.BOOT_FILE.read_text().strip():
            return _Process(pid=0, start_ticks=-1)
        return _Process(pid=content[which]["pid"], start_ticks=content[which]["startTicks"])


async def _gone(process: _Process) -> None:
    """Wait for the end of a process, which need not be our child."""
    loop = asyncio.get_running_loop()
    if not process.is_alive():
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    try:
        if process.is_alive():
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # noqa: ASYNC222 - returns at once
