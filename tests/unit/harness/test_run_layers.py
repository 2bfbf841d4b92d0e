"""Layers hang without keeping the next from running, and run side by side."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.harness.store import ROOT
from tests.patience import HANGS_S

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


MEETS = """
import time
from pathlib import Path

def test_the_other_layer_runs_meanwhile():
    Path("OWN").touch()
    deadline = time.monotonic() + 500
    while not Path("OTHER").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
"""


BUILDS = "import sys\nprint('built a-thing in 3 s', file=sys.stderr)\n"


def checkout(folder: Path, **layers: str) -> list[str]:
    """A checkout with only the runner and these layers, and the command that runs them."""
    (folder / "tests" / "harness").mkdir(parents=True)
    for name in ("__init__.py", "run_layers.py", "running.py", "left_behind.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    (folder / "tests" / "harness" / "__main__.py").write_text(BUILDS)
    for layer, program in layers.items():
        (folder / "tests" / layer).mkdir()
        (folder / "tests" / layer / f"test_{layer}.py").write_text(program)
    return [sys.executable, str(folder / "tests" / "run_layers.py"), *layers]


def test_what_computes_runs_beside_what_waits(tmp_path: Path) -> None:
    """`browser` is of the first lane, `chart` and `cluster` of the second."""
    layers = {
        "browser": MEETS.replace("OWN", "browser-runs").replace("OTHER", "chart-runs"),
        "chart": MEETS.replace("OWN", "chart-runs").replace("OTHER", "browser-runs") + "    assert False\n",
        "cluster": "import pytest\ndef test_it(): pytest.skip('no cluster')\n",
    }
    command = checkout(tmp_path, **layers)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    lines, _, summary = done.stdout.partition("=== summary ===")
    assert " browser | === browser ===" in lines
    assert "   chart | FAILED tests/chart/test_chart.py" in lines
    counts = [
        line.split()[:6] for line in summary.split("\n") if " s" in line and " passed " in line and "," not in line
    ]
    assert counts == [
        ["browser", "1", "passed", "0", "failed", "0"],
        ["chart", "0", "passed", "1", "failed", "0"],
        ["cluster", "0", "passed", "0", "failed", "1"],
    ], done.stdout
    assert "no cluster" in summary
    assert "failed: tests.chart.test_chart::test_the_other_layer_runs_meanwhile\n    E       assert False\n" in summary
    last = "failed: tests.chart.test_chart::test_the_other_layer_runs_meanwhile: assert False"
    assert summary.splitlines()[-2] == last
    assert "built meanwhile: a-thing in 3 s" in summary
    assert "1 passed, 1 failed, 1 skipped" in summary


def test_ctrl_c_ends_all_lanes_with_a_summary(tmp_path: Path) -> None:
    hangs = "import time\nfrom pathlib import Path\ndef test_it():\n    Path('NAME').touch()\n    time.sleep(600)\n"
    layers = ("browser", "chart")
    command = checkout(tmp_path, **{layer: hangs.replace("NAME", f"{layer}-runs") for layer in layers})
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + HANGS_S
    while not all((tmp_path / f"{layer}-runs").exists() for layer in layers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=100)
    assert run.returncode not in (0, None)
    assert said.count("its lane ended before") == 2, said
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in content(path)]
    assert not left, "nothing runs on"


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
