"""A forked interpreter ends, prints and is told to stop as the real one does, and what it starts is one, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests import forking
from tests.patience import HANGS_S

PROGRAMS = {
    "ends": "import sys; print('out'); print('error', file=sys.stderr); sys.exit(7)",
    "says": "import sys; sys.exit('no')",
    "dies": "import os; os.kill(os.getpid(), 9)",
    "tells": "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['X']]))",
    "starts": "import subprocess, sys; print(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)",
    "stops": "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    "print('ready', flush=True)\ntime.sleep(60)",
    "sleeps": "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("programs")
    for name, text in PROGRAMS.items():
        (made / f"finetune_{name}.py").write_text(text)
    return made


@pytest.fixture(scope="module")
def python(folder: Path) -> str:
    return forking.start(preloaded=["json"], path=[folder])


def run(python: str, folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", f"finetune_{name}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "X": "y"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False, timeout=60)


@pytest.mark.parametrize("name", ["ends", "says", "dies", "tells"])
def test_it_does_what_the_real_one_does(python: str, folder: Path, name: str) -> None:
    forked, real = (run(each, folder, name, "a", "b c") for each in (python, sys.executable))
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)


def test_it_is_started_by_what_runs_in_it_and_leaves_the_rest_to_the_real_one(python: str, folder: Path) -> None:
    for options in (["-m"], ["-u", "-m"]):
        assert run(python, folder, "starts", *options, "finetune_tells").stdout == f'[[], "{folder}", "y"]\n0\n'
    said = run(python, folder, "starts", "-c", "import sys; print(sys.executable)").stdout
    assert said.split() == [sys.executable, "0"]


def test_a_signal_reaches_it(python: str, folder: Path) -> None:
    command = [python, "-m", "finetune_stops"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 75


def test_it_ends_with_the_one_who_waits_for_it(python: str, folder: Path) -> None:
    command = [python, "-m", "finetune_sleeps"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        pid = json.loads(process.stdout.readline())
        process.kill()
        deadline = time.monotonic() + HANGS_S
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
