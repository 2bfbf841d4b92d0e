"""Cleans up after an owner that died: reads a pipe until its other end closes, then removes the environment.

A test run that is killed outright runs no clean-up of its own. The kernel closes its end of the pipe all the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.harness.machine import remove_cgroups
from tests.harness.processes import kill, read_record
from tests.harness.store import ROOT
from tests.patience import HANGS_S

_CGROUP_RECORD = "cgroup.json"


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The guard process of an environment, held by its owner."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, folder: Path) -> Guard:
        """Watch over the environment in `folder` from a process of its own session."""
        return cls(
            process=subprocess.Popen(
                [sys.executable, "-m", "tests.harness.guard", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd=ROOT,
            )
        )

    def remove(self) -> None:
        """Have the environment removed now, and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=HANGS_S)


def record_cgroup(folder: Path, name: str) -> None:
    """Remember the environment's cgroup for its removal."""
    (folder / _CGROUP_RECORD).write_text(json.dumps(name))


def remove_environment(folder: Path) -> None:
    """Kill every recorded process of an environment and remove its cgroups and its folder. May be called again."""
    records = sorted((folder / "processes").glob("*.json"))
    kill([process for record in records if (process := read_record(record)) is not None], timeout_s=30)
    if (folder / _CGROUP_RECORD).exists():
        remove_cgroups(json.loads((folder / _CGROUP_RECORD).read_text()))
    if folder.exists():
        shutil.rmtree(folder)


if __name__ == "__main__":
    while os.read(sys.stdin.fileno(), 1):
        pass
    remove_environment(Path(sys.argv[1]))
