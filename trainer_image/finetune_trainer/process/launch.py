"""Starts the training processes of this pod, passes SIGTERM on to them, and finds out how they ended.

One process is started directly, several by torchrun: one agent in each pod, all meeting at the first pod. This process
trains nothing and imports no torch, so that it is there to say what happened when a training process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from finetune_api.progress import HANG_VARIABLE, LIFE_VARIABLE
from finetune_api.results import ExitCode, TrainResult
from finetune_api.run import TrainRun
from finetune_trainer.process.cores import available_cores
from finetune_trainer.process.errors import StageError, bad_configuration
from finetune_trainer.process.stopping import GRACE_VARIABLE

log = logging.getLogger(__name__)
ADDRESS_VARIABLE = "FINETUNE_MASTER_ADDR"
PORT_VARIABLE = "FINETUNE_MASTER_PORT"
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
OUTCOMES_VARIABLE = "FINETUNE_OUTCOMES"
_RENDEZVOUS_SECONDS = 600
_POLL_SECONDS = 0.2
_DEFAULT_GRACE_SECONDS = 120.0
_ASKED_AFTER = 0.9
"""Of the seconds after which training counts as hung."""
# Of several ends the one that tells most: a lost peer is what the others see when one of them ends.
_SECONDARY = ("PeerLost", "ProcessKilled")


def train(run: TrainRun) -> TrainResult:
    """Train; the same result in every pod. Raises the StageError of the process that ended first for a reason."""
    with TemporaryDirectory(prefix="finetune-outcomes-") as folder:
        outcomes = Path(folder)
        process = subprocess.Popen(
            _command(run),
            env={"NCCL_DEBUG": "WARN", **os.environ, OUTCOMES_VARIABLE: folder, **_threads(run)},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        stop = _Forwarder(process=process, outcomes=outcomes)
        silence = _Silence(outcomes=outcomes)
        previous = signal.signal(signal.SIGTERM, stop.on_signal)
        try:
            while process.poll() is None:
                stop.kill_when_overdue()
                silence.look()
                time.sleep(_POLL_SECONDS)
        finally:
            _kill_group(process)
            signal.signal(signal.SIGTERM, previous)
        return _result(outcomes=outcomes, code=process.returncode, stopped=stop.asked)


def die_with_parent() -> None:
    """Have the kernel end this process with its parent: nothing trains on unseen (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def write_outcome(*, environment: Mapping[str, str], outcome: dict[str, Any]) -> None:
    """A training process's last word: {"exit_code", "result"} or {"exit_code", "reason", "message", ...}."""
    folder = environment.get(OUTCOMES_VARIABLE)
    if folder:
        path = Path(folder) / f"outcome-{environment.get('RANK', '0')}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(outcome))
        temporary.replace(path)


def announce(*, environment: Mapping[str, str]) -> None:
    """A training process can be told to stop, and asked where it is (SIGUSR1), from now on."""
    faulthandler.register(signal.SIGUSR1)
    folder = environment.get(OUTCOMES_VARIABLE)
    if folder:
        (Path(folder) / f"pid-{os.getpid()}").write_text(environment.get("RANK", "0"))


class _Forwarder:
    """SIGTERM goes to the training processes, not to torchrun, which would not give them the time to save."""

    def __init__(self, *, process: subprocess.Popen[bytes], outcomes: Path) -> None:
        self._process = process
        self._outcomes = outcomes
        self._deadline = float("inf")
        self.asked = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + float(os.environ.get(GRACE_VARIABLE, _DEFAULT_GRACE_SECONDS)) - 2.0
        pids = [int(path.name.removeprefix("pid-")) for path in self._outcomes.glob("pid-*")]
        if not pids:  # nothing was trained yet
            _kill_group(self._process)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue

    def kill_when_overdue(self) -> None:
        if time.monotonic() > self._deadline:
            _kill_group(self._process)


class _Silence:
    """Has the training processes say where they are, shortly before the operator takes them for hung."""

    def __init__(self, *, outcomes: Path) -> None:
        self._outcomes = outcomes
        self._file = Path(os.environ.get(LIFE_VARIABLE, os.devnull))
        self._limit = _ASKED_AFTER * float(os.environ.get(HANG_VARIABLE, "inf"))
        self._asked_since: float | None = None

    def look(self) -> None:
        """Once for each time that nothing is heard."""
        try:
            touched = self._file.stat().st_mtime
        except OSError:
            return
        if touched == self._asked_since or time.time() - touched < self._limit:
            return
        self._asked_since = touched
        for path in sorted(self._outcomes.glob("pid-*"), key=lambda path: path.read_text()):
            log.warning("training is silent for %.0f s; process %s is here:", time.time() - touched, path.read_text())
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name.removeprefix("pid-")), signal.SIGUSR1)
            time.sleep(_POLL_SECONDS)  # one after another


def _command(run: TrainRun) -> list[str]:
    worker = ["-m", "finetune_trainer.training.worker"]
    world = run.nodes * run.processes_per_node
    if world == 1:
        return [sys.executable, *worker]
    index = os.environ.get(INDEX_VARIABLE, "0")
    address, port = os.environ.get(ADDRESS_VARIABLE), os.environ.get(PORT_VARIABLE)
    if run.nodes == 1:
        address, port = "127.0.0.1", port or str(_free_port())
    if not address or not port:
        raise bad_configuration(
            "BadEnvironment", f"${ADDRESS_VARIABLE} and ${PORT_VARIABLE} must say where the {run.nodes} pods meet"
        )
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={run.nodes}",
        f"--nproc-per-node={run.processes_per_node}",
        f"--node-rank={index}",
        f"--master-addr={address}",
        f"--master-port={port}",
        f"--rdzv-conf=timeout={_RENDEZVOUS_SECONDS}",
        "--max-restarts=0",
        "--monitor-interval=0.5",
        *worker,
    ]


def _threads(run: TrainRun) -> dict[str, str]:
    """As many threads as there are cores (torchrun would give each process one), which wait without spinning.

    Where other processes share the cores, spinning threads keep from running the very ones that they wait for.
    """
    threads = str(max(1, available_cores() // run.processes_per_node))
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), "OMP_WAIT_POLICY": "PASSIVE"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of a process and its children (torchrun's processes are in its session)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _result(*, outcomes: Path, code: int, stopped: bool) -> TrainResult:
    found = [json.loads(path.read_text()) for path in sorted(outcomes.glob("outcome-*.json"))]
    failures = [StageError.of(outcome) for outcome in found if outcome["exit_code"] != 0]
    results = [outcome["result"] for outcome in found if outcome["exit_code"] == 0]
    if results and not failures and code == 0:
        return TrainResult.model_validate(results[0])
    telling = next((each for each in failures if each.reason not in _SECONDARY), None)
    if telling is not None:
        raise telling
    if stopped:
        raise StageError(
            reason="Stopped",
            message="stopped by SIGTERM before training had begun, or without the time for a checkpoint",
            exit_code=ExitCode.STOPPED_AFTER_CHECKPOINT,
        )
    if len(found) < len(list(outcomes.glob("pid-*"))) or code < 0:
        raise _killed(code)
    raise next(
        iter(failures),
        StageError(
            reason="LaunchFailed",
            message=f"the training processes ended with exit status {code} before they began; see the log above",
            exit_code=ExitCode.INTERNAL_ERROR,
        ),
    )


def _killed(code: int) -> StageError:
    """A training process that ended without a word was killed: by the kernel for its memory, or by somebody."""
    if _out_of_memory():
        return StageError(
            reason="OutOfMemory",
            message="a training process was killed because the container's memory limit was reached; raise"
            " compute.resources.limits.memory, or lower training.microBatchSize or training.maxLength",
            exit_code=ExitCode.INTERNAL_ERROR,
        )
    how = f"by signal {-code}" if code < 0 else "by a signal"
    return StageError(
        reason="ProcessKilled",
        message=f"a training process was killed {how}; the next attempt goes on from the newest checkpoint",
        exit_code=ExitCode.INTERNAL_ERROR,
    )


def _out_of_memory() -> bool:
    """Whether the kernel killed a process of this container for its memory (cgroup v2, else v1)."""
    for name in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(name).read_text().split("\n")
        except OSError:
            continue
        counts = dict(line.split() for line in lines if len(line.split()) == 2)
        if int(counts.get("oom_kill", "0")) > 0:
            return True
    return False
