"""Run layers of the tests one after the other and say at the end what passed, what was skipped and why.

`python tests/run_layers.py unit api ...`; each layer is one pytest run (or the linters). What the cluster layers need
(Kubernetes binaries, images) is built in the background while the first layers run.

No layer takes longer than its limit, and all together end in time for a summary: one that hangs is interrupted, which
lets its fixtures clean up, then killed with all that it started. It counts as failed, with the tests that were running,
and the next layer begins.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import left_behind, running  # noqa: E402 - this file is run by its path

LINTERS = (
    (".venv/bin/ruff", "check", "."),
    (".venv/bin/ruff", "format", "--check", "."),
    (".venv/bin/mypy",),
    (".venv/bin/lint-imports", "--no-cache"),
)
BUILT_FIRST = {"api", "cluster", "chart"}
BUILD_LIMIT_S = 1500
TOTAL_LIMIT_S = 80 * 60
"""Continuous integration ends a run after 90 minutes without a word; this one has its last word before."""
INTERRUPT_S = 90
"""What an interrupted layer gets for its fixtures' clean-up."""
CLEANUP_S = 60


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How a layer is run."""

    limit_s: int = 900
    """About three times what it takes on two busy cores."""
    workers: int = 1
    """Processes that share its files; more than one where files share nothing and do not fill the machine."""


LAYERS = {
    "lint": Layer(limit_s=300),
    "unit": Layer(limit_s=300, workers=2),
    "trainer": Layer(limit_s=1500, workers=2),
    "local": Layer(limit_s=1200, workers=2),
    "api": Layer(limit_s=900, workers=2),
    "cluster": Layer(limit_s=2400),
    "browser": Layer(limit_s=300),
}


@dataclass(kw_only=True)
class Outcome:
    """What a layer came to."""

    layer: str
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: set[str] = field(default_factory=set)


def main(layers: list[str]) -> int:
    """Run the layers; 0 when none failed."""
    left_behind.adopt_orphans()
    # What is started in the background ignores Ctrl-C, and so would all that it starts: tests send it to processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")]),
    }
    due = time.monotonic() + TOTAL_LIMIT_S
    builder = _build_in_background(layers, environment)
    outcomes: list[Outcome] = []
    try:
        for layer in layers:
            print(f"\n=== {layer} ===", flush=True)
            began = time.monotonic()
            if builder is not None and layer in BUILT_FIRST:
                _finish(builder, limit_s=BUILD_LIMIT_S)
                builder = None
            settings = LAYERS.get(layer, Layer())
            limit_s = min(settings.limit_s, due - time.monotonic())
            kept = () if builder is None else (builder.pid,)
            if limit_s <= 0:
                outcome = Outcome(layer=layer, failed=1, reasons={"not run: the layers before took all the time"})
            elif layer == "lint":
                outcome = _lint(environment, limit_s=limit_s)
            else:
                outcome = _pytest(layer, environment, limit_s=limit_s, workers=settings.workers, kept=kept)
            outcome.seconds = time.monotonic() - began
            outcomes.append(outcome)
    finally:
        if builder is not None:
            os.killpg(builder.pid, signal.SIGTERM)
            builder.wait()
        _summarise(outcomes)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _build_in_background(layers: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes] | None:
    if len(layers) < 2 or not BUILT_FIRST & set(layers):
        return None
    command = [sys.executable, "-m", "tests.harness", "prepare"]
    return subprocess.Popen(["nice", "-n", "10", *command], cwd=ROOT, env=environment, start_new_session=True)


def _lint(environment: dict[str, str], *, limit_s: float) -> Outcome:
    outcome = Outcome(layer="lint")
    due = time.monotonic() + limit_s
    for command in LINTERS:
        print("$", " ".join(command), flush=True)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        if not _finish(process, limit_s=due - time.monotonic()):
            outcome.reasons.add(f"{' '.join(command)} did not end in time")
        if process.returncode == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
    return outcome


def _pytest(layer: str, environment: dict[str, str], *, limit_s: float, workers: int, kept: Sequence[int]) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix=f"finetune-tests-{layer}-"))
    report, running_tests = folder / "report.xml", folder / "running"
    command = [sys.executable, "-m", "pytest", f"tests/{layer}", "-q", f"--junit-xml={report}"]
    command += ["-p", "tests.running", f"--basetemp={folder / 'tmp'}", "--durations=8", "--durations-min=10"]
    environment = {**environment, running.FILE_VARIABLE: str(running_tests)}
    if workers > 1:
        command += [f"--numprocesses={workers}", "--dist=loadfile", "--no-loadscope-reorder"]
        environment.setdefault("OMP_NUM_THREADS", "1")  # threads of several workers would wait for each other
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    hung: list[str] | None = None
    if not _wait(process, limit_s=limit_s):
        hung = running.read(running_tests)
        print(f"\n{layer} has taken {limit_s:.0f} s: interrupted in {', '.join(hung) or 'no test'}", flush=True)
        _finish(process, limit_s=0)
    left = left_behind.end_processes(besides=kept, patience_s=CLEANUP_S)
    left_behind.unmount_below(folder)
    outcome = _read(layer, report)
    if hung is not None:
        outcome.failed = max(1, outcome.failed)
        outcome.reasons.add(f"not done after {limit_s:.0f} s; running then: {', '.join(hung) or 'no test'}")
    elif process.returncode not in (0, 1, 5) or (process.returncode == 1 and outcome.failed == 0):
        outcome.failed += 1
        outcome.reasons.add(f"pytest ended with exit status {process.returncode}")
    if left:
        outcome.reasons.add(f"left behind and killed: {'; '.join(left)}")
    if outcome.failed:
        print(f"What the tests of {layer} wrote is in {folder}", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _wait(process: subprocess.Popen[bytes], *, limit_s: float) -> bool:
    """Whether it ended in time. A Ctrl-C reaches only this process, which hands it on."""
    try:
        process.wait(timeout=max(0, limit_s))
    except subprocess.TimeoutExpired:
        return False
    except KeyboardInterrupt:
        _finish(process, limit_s=0)
        raise
    return True


def _finish(process: subprocess.Popen[bytes], *, limit_s: float) -> bool:
    """Whether it ended in time; else it is interrupted, and killed with its group when that does not end it."""
    if _wait(process, limit_s=limit_s):
        return True
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=INTERRUPT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return False


def _read(layer: str, report: Path) -> Outcome:
    outcome = Outcome(layer=layer)
    if not report.exists():
        return outcome
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - our own file
        skipped = case.find("skipped")
        if skipped is not None:
            outcome.skipped += 1
            outcome.reasons.add(skipped.get("message", ""))
        elif case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        else:
            outcome.passed += 1
    return outcome


def _summarise(outcomes: list[Outcome]) -> None:
    print("\n=== summary ===")
    for outcome in outcomes:
        print(
            f"{outcome.layer:<10} {outcome.passed:>5} passed {outcome.failed:>4} failed {outcome.skipped:>4} skipped"
            f" {outcome.seconds:>7.1f} s"
        )
        for reason in sorted(outcome.reasons):
            print(f"{'':<10} because: {reason}")
    passed, failed, skipped = (sum(getattr(o, name) for o in outcomes) for name in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
