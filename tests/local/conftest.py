"""Real runs of `finetune`, small enough for a test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from demo import assets
from tests.forking import forked_python
from tests.harness.preparation import prepare_collected, prepare_for_local
from tests.local.small_encoder import small_encoder

from finetune_operator.local.files import read_json
from finetune_operator.local.home import LocalHome

MINILM = {"uri": f"file://{assets.minilm()}", "task": "SequenceClassification"}
"""The base model of jobs that have to learn something."""
ROOT = Path(__file__).resolve().parents[2]
LABELS = ("ai", "food", "sports")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test."""
    prepare_collected(session, folder=Path(__file__).parent, prepare=prepare_for_local)


@dataclass(kw_only=True)
class Workspace:
    """A folder with a home, data and manifests."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    """What commands, and all that they start, run in; `forked_python()` where no test sends them signals."""
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def home(self) -> LocalHome:
        """The home that commands of this workspace use."""
        return LocalHome.at(self.folder / ".finetune")

    def write_data(self, name: str = "data.jsonl", *, rows: int = 90) -> Path:
        """Questions of three topics, as many as asked for, in no order."""
        everything = set(assets.topic_labelled(self.folder / f".all-{name}").read_text().splitlines())
        fitting = [line for line in everything if json.loads(line)["label"] in LABELS]
        chosen = sorted(fitting, key=lambda line: hashlib.sha256(line.encode()).digest())[:rows]
        path = self.folder / name
        path.write_text("\n".join(chosen) + "\n")
        return path

    def write_job(self, name: str = "job", **changes: Any) -> Path:
        """A manifest of a classifier that trains for seconds. `changes` replace fields of the spec."""
        spec = {
            "artifacts": {"uri": "file://./runs"},
            "model": {"uri": f"file://{small_encoder()}", "task": "SequenceClassification"},
            "data": {
                "sources": [{"name": "topics", "uri": "file://./data.jsonl"}],
                "split": {"train": 0.4, "validation": 0.1, "test": 0.5},
            },
            "method": {"type": "Full"},
            "training": {"maxSteps": 30, "learningRate": 0.0003, "globalBatchSize": 8, "maxLength": 32},
            "checkpoint": {"everySteps": 5},
            "evaluation": {"baseline": "Base", "metrics": [{"name": "accuracy", "minImprovement": 0.1}]},
        }
        manifest = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": spec | changes,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(manifest))
        return path

    def finetune(self, *arguments: str | Path, timeout: float = 800) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*arguments)
        out, error = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def start(self, *arguments: str | Path, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a command in the workspace's folder."""
        process = subprocess.Popen(
            [self.python, "-m", "finetune_operator.cli", *map(str, arguments)],
            cwd=self.folder,
            env=self._environment(),
            text=True,
            stdout=stdout,
            stderr=subprocess.PIPE if stdout == subprocess.PIPE else subprocess.STDOUT,
        )
        self.processes.append(process)
        return process

    def job(self, name: str = "job") -> dict[str, Any]:
        """The stored job."""
        found: dict[str, Any] = read_json(self.home.objects / "finetunejob" / "default" / f"{name}.json") or {}
        return found

    def status(self, name: str = "job") -> dict[str, Any]:
        """The stored job's status."""
        found: dict[str, Any] = self.job(name).get("status") or {}
        return found

    def progress(self) -> dict[str, float]:
        """The newest metrics of the training processes."""
        files = sorted(self.home.root.glob("pods/*/*/progress.json"), key=lambda path: path.stat().st_mtime)
        report = read_json(files[-1]) if files else None
        metrics = report["trainerStatus"]["metrics"] if report else []
        return {metric["name"]: float(metric["value"]) for metric in metrics}

    def pids(self) -> list[int]:
        """The processes that run as containers here, and their descendants."""
        return [pid for shim in self.shims() for pid in descendants(shim)[1:]]

    def shims(self, *, pod: str = "*") -> list[int]:
        """The processes that the containers of pods run under."""
        folders = {str(path.resolve()) for path in self.home.root.glob(f"pods/*/{pod}")}
        running = os.listdir("/proc")  # noqa: PTH208
        return [int(name) for name in running if name.isdigit() and _is_shim(name, folders=folders)]

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in ("KUBECONFIG", "HOME")}
        path = os.pathsep.join(str(ROOT / name) for name in ("operator", "trainer_image"))
        return {**kept, "PYTHONPATH": path, "HOME": str(self.folder), **self.environment}

    def close(self) -> None:
        """End everything that still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
        for pid in [pid for shim in self.shims() for pid in descendants(shim)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_shim(pid: str, *, folders: set[str]) -> bool:
    try:  # by strings: hundreds of processes are looked at, again and again
        folder = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115
        return folder in folders and b"shim.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, as far as they live."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    below = [each for child in children for each in descendants(int(child))]
    return [*([] if state in "ZX" else [pid]), *below]


@pytest.fixture
def quick(workspace: Workspace) -> Workspace:
    """The same for commands that run to their end: torch is imported already."""
    workspace.python = forked_python()
    return workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(folder=tmp_path)
    yield made
    made.close()
