"""A layer that hangs is ended with all that it started, named, and does not keep the next from running."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.harness.store import ROOT

HANGS = """
import pytest, signal, subprocess, sys, time

@pytest.mark.parametrize("number", range(6))
def test_slowly(number):
    time.sleep(1)  # longer than it may be quiet, but a test ends each second: slow is not hung

def test_it():
    subprocess.Popen(["sleep", "1234.5"], start_new_session=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
"""
RUN = """
import sys
from pathlib import Path
from tests import run_layers

run_layers.ROOT = Path(sys.argv[1])
run_layers.INTERRUPT_S = run_layers.CLEANUP_S = 1
run_layers.LAYERS["hangs"] = run_layers.Layer(quiet_s=4)
sys.exit(run_layers.main(["hangs", "passes"]))
"""


def test_a_layer_that_hangs_is_ended_and_named(tmp_path: Path) -> None:
    for layer, program in {"hangs": HANGS, "passes": "def test_it(): pass\n"}.items():
        (tmp_path / "tests" / layer).mkdir(parents=True)
        (tmp_path / "tests" / layer / "test_layer.py").write_text(program)
    (tmp_path / "tests" / "running.py").symlink_to(ROOT / "tests" / "running.py")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert time.monotonic() - began < 50
    summary = done.stdout.partition("=== summary ===")[2]
    assert "no test began or ended for 4 s; running then: tests/hangs/test_layer.py::test_it" in summary, (
        done.stdout + done.stderr
    )
    assert "left behind and killed: sleep 1234.5" in summary
    assert "1 passed, 1 failed, 0 skipped" in summary
