"""Two processes of one machine."""

from __future__ import annotations

import os
import subprocess

from tests.forking import forked_python
from tests.patience import HANGS_S
from tests.trainer.small_run import ROOT


def pair(*arguments: str) -> list[str]:
    """What two processes of one machine say, which find each other as those of torchrun do. Both must end well."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 1000), "WORLD_SIZE": "2"}
    paths = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [forked_python(), *arguments],
            cwd=ROOT,
            env={**os.environ, **meeting, **paths, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=HANGS_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said
