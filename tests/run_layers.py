"""Run layers of the tests one after the other and say at the end what passed, what was skipped and why.

`python tests/run_layers.py unit api ...`; each layer is one pytest run (or the linters). What the cluster layers need
(Kubernetes binaries, images) is built in the background while the first layers run.

A layer in which no test has begun or ended for long hangs: it is interrupted, which lets its fixtures clean up, then
killed with all that it started. It counts as failed, with the tests that were running, and the next layer begins. One
that is only slow, on a busy machine, goes on; all together end in time for a summary.
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

    quiet_s: int = 600
    """Without a test that begins or ends for so long it hangs. Longer than any test takes on a busy machine."""
    workers: int = 1
    """Processes that share its files; more than one where files share nothing and do not fill the machine."""


LAYERS = {
    "unit": Layer(quiet_s=300, workers=2),
    "trainer": Layer(workers=2),
    "local": Layer(workers=2),
    "api": Layer(workers=2),
    "cluster": Layer(quiet_s=1500),
}
LINTER_LIMIT_S = 600
_POLL_S = 5.0


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
            kept = () if builder is None else (builder.pid,)
            if time.monotonic() >= due:
                outcome = Outcome(layer=layer, failed=1, reasons={"not run: the layers before took all the time"})
            elif layer == "lint":
                outcome = _lint(environment, due=due)
            else:
                outcome = _pytest(layer, environment, due=due, settings=settings, kept=kept)
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


def _lint(environment: dict[str, str], *, due: float) -> Outcome:
    outcome = Outcome(layer="lint")
    for command in LINTERS:
        print("$", " ".join(command), flush=True)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        if not _finish(process, limit_s=min(LINTER_LIMIT_S, due - time.monotonic())):
            outcome.reasons.add(f"{' '.join(command)} did not end in time")
        if process.returncode == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
    return outcome


def _pytest(layer: str, environment: dict[str, str], *, due: float, settings: Layer, kept: Sequence[int]) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix=f"finetune-tests-{layer}-"))
    report, running_tests = folder / "report.xml", folder / "running"
    command = [sys.executable, "-m", "pytest", f"tests/{layer}", "-q", f"--junit-xml={report}"]
    command += ["-p", "tests.running", f"--basetemp={folder / 'tmp'}", "--durations=8", "--durations-min=10"]
    environment = {**environment, running.FILE_VARIABLE: str(running_tests)}
    if settings.workers > 1:
        command += [f"--numprocesses={settings.workers}", "--dist=loadfile", "--no-loadscope-reorder"]
        environment.setdefault("OMP_NUM_THREADS", "1")  # threads of several workers would wait for each other
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    ended = _watch(process, running_tests, due=due, quiet_s=settings.quiet_s)
    if ended is not None:
        ended = f"{ended}; running then: {', '.join(running.read(running_tests)) or 'no test'}"
        print(f"\n{layer} is interrupted: {ended}", flush=True)
        _finish(process, limit_s=0)
    left = left_behind.end_processes(besides=kept, patience_s=CLEANUP_S)
    left_behind.unmount_below(folder)
    outcome = _read(layer, report)
    if ended is not None:
        outcome.failed = max(1, outcome.failed)
        outcome.reasons.add(ended)
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


def _watch(process: subprocess.Popen[bytes], running_tests: Path, *, due: float, quiet_s: float) -> str | None:
    """Wait for its end; else say why it has to be ended. Each test that begins or ends writes `running_tests`.

    Before the first test a layer may build what it needs, which takes long.
    """
    written, since = 0, time.monotonic()
    while not _wait(process, limit_s=min(_POLL_S, quiet_s / 2)):
        last = running_tests.stat().st_mtime_ns if running_tests.exists() else 0
        if last != written:
            written, since = last, time.monotonic()
        if time.monotonic() >= due:
            return "not done when all time was taken"
        allowed_s = quiet_s if written else max(quiet_s, BUILD_LIMIT_S)
        if time.monotonic() - since >= allowed_s:
            return f"no test began or ended for {allowed_s:.0f} s"
    return None


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
