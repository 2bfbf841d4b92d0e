"""A pod of runtime VLLM on this machine: what its init container does, then vLLM in its place.

    python container.py RUN_FILE vllm serve ...

The command is the operator's own. A CPU without bf16 that others use too needs no more than not to compile the model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PYTHON_VARIABLE = "FINETUNE_TEST_VLLM_PYTHON"
"""The interpreter that vLLM is installed for."""
CODE_VARIABLE = "FINETUNE_TEST_CODE"
"""PYTHONPATH of what is ours; the container's own is for vLLM."""


def main(run_file: str, *command: str) -> None:
    """Fetch, then become vLLM."""
    ours = {**os.environ, "PYTHONPATH": os.environ[CODE_VARIABLE]}
    subprocess.run([sys.executable, "-m", "finetune_trainer", "fetch", "--run-file", run_file], env=ours, check=True)
    program, words = Path(os.environ[PYTHON_VARIABLE]).parent / "vllm", list(command)
    words[words.index("--port") + 1] = os.environ["FINETUNE_SERVE_PORT"]
    os.execv(program, [*words, "--enforce-eager", "--host", "127.0.0.1"])  # noqa: S606 - a program of ours


if __name__ == "__main__":
    main(*sys.argv[1:])
