"""Run layers of the tests and say at the end what passed, what was skipped and why, what took how long, and what had
to be built for it.

`python tests/run_layers.py unit api ...`; each layer is one pytest run (or the linters). Those that compute run beside
those that mostly wait (`LANES`), each of the two one after the other. What the cluster layers need (Kubernetes
binaries, images) is built meanwhile; a layer that needs what is not there yet waits for it before its first test.

A layer in which no test has begun or ended for long hangs: it is interrupted, which lets its fixtures clean up, then
killed with all that it started. It counts as failed, with the tests that were running, and the next layer begins. One
that is only slow, on a busy machine, goes on; all together end in time for a summary.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
LANES = (("lint", "unit", "trainer", "local", "browser", "api"), ("cluster", "chart"))
"""Layers that run side by side. The first lane computes, and gives way: it has what the second, which mostly waits for
nodes, leaves of the processor. The layer of the apiserver is where it makes both as long."""
_WAY_GIVEN = 5
"""By how much the first lane, and what is built meanwhile, are nicer."""
NEED_BUILDS = {"trainer", "local", "api", "cluster", "chart"}
BUILD_LIMIT_S = 1800
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
    "cluster": Layer(quiet_s=1800),
    "vllm": Layer(quiet_s=3600),
    "gangs": Layer(quiet_s=3600),
}
LINTER_LIMIT_S = 1500
_LINE = 300
_LINES_OF_FAILURE = 12
"""How much of a failure the summary repeats, in characters and lines."""
_SHORT_LINE = 150
_NAMED_AGAIN = 6
"""Failures that get one more line at the very end, which is what is kept of a long output, and its characters."""
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
    failures: list[str] = field(default_factory=list)
    """Failed tests by name, each with the end of what it said: the summary is what is read first, and kept longest."""


def main(layers: list[str], *, report: Path | None = None) -> int:
    """Run the layers; 0 when none failed. A lane of a larger run writes its outcomes into `report`."""
    # What is started in the background ignores Ctrl-C, and so would all that it starts: tests send it to processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")]),
    }
    lanes = [[layer for layer in layers if layer in lane] for lane in LANES]
    several = all(lanes)
    builder = None if report else _build_in_background(layers, environment, shown=not several)
    outcomes: list[Outcome] = []
    built: list[str] = []
    try:
        if several:
            _side_by_side(lanes, environment, builder, outcomes=outcomes, built=built)
        else:
            _one_after_another(layers, environment, builder, outcomes=outcomes)
    finally:
        if builder is not None and builder.poll() is None:
            os.killpg(builder.pid, signal.SIGTERM)
            builder.wait()
        if report:
            report.write_text(json.dumps([{**asdict(each), "reasons": sorted(each.reasons)} for each in outcomes]))
        else:
            outcomes.sort(key=lambda outcome: layers.index(outcome.layer))
            _summarise(outcomes, built=built)
    return 1 if any(outcome.failed for outcome in outcomes) or len(outcomes) < len(layers) else 0


def _one_after_another(
    layers: list[str],
    environment: dict[str, str],
    builder: subprocess.Popen[bytes] | None,
    *,
    outcomes: list[Outcome],
) -> None:
    left_behind.adopt_orphans()
    due = time.monotonic() + TOTAL_LIMIT_S
    kept = () if builder is None else (builder.pid,)
    for layer in layers:
        print(f"\n=== {layer} ===", flush=True)
        began = time.monotonic()
        settings = LAYERS.get(layer, Layer())
        if time.monotonic() >= due:
            outcome = Outcome(layer=layer, failed=1, reasons={"not run: the layers before took all the time"})
        elif layer == "lint":
            outcome = _lint(environment, due=due)
        else:
            outcome = _pytest(layer, environment, due=due, settings=settings, kept=kept)
        outcome.seconds = time.monotonic() - began
        outcomes.append(outcome)


def _side_by_side(
    lanes: list[list[str]],
    environment: dict[str, str],
    builder: subprocess.Popen[bytes] | None,
    *,
    outcomes: list[Outcome],
    built: list[str],
) -> None:
    """Each lane in a process of its own, which is asked for what its tests leave behind. Its lines bear its layer."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-lanes-"))
    reports = [folder / f"{number}.json" for number in range(len(lanes))]
    processes = []
    for number, (lane, report) in enumerate(zip(lanes, reports, strict=True)):
        command = [sys.executable, __file__, f"--report={report}", *lane]
        nice = [] if number else ["nice", "-n", str(_WAY_GIVEN)]
        processes.append(
            subprocess.Popen(
                [*nice, *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
    everything = [*processes, *([builder] if builder else [])]
    readers = [threading.Thread(target=_pass_on, args=(each, built), daemon=True) for each in everything]
    for reader in readers:
        reader.start()
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            _finish(process, limit_s=2 * INTERRUPT_S + CLEANUP_S)
        raise
    finally:
        for reader in readers[: len(processes)]:
            reader.join(timeout=CLEANUP_S)
        for lane, report in zip(lanes, reports, strict=True):
            found = json.loads(report.read_text()) if report.exists() else []
            outcomes += [Outcome(**{**each, "reasons": set(each["reasons"])}) for each in found]
            ended = {each["layer"] for each in found}
            outcomes += [
                Outcome(layer=layer, failed=1, reasons={"its lane ended before"})
                for layer in lane
                if layer not in ended
            ]
        shutil.rmtree(folder, ignore_errors=True)


def _pass_on(process: subprocess.Popen[bytes], built: list[str]) -> None:
    """Print what a lane or the builder says, line by line, each with its layer; keep what was built."""
    assert process.stdout is not None
    layer = "build"
    for line in process.stdout:
        text = line.decode(errors="replace").rstrip("\n")
        heading = re.fullmatch(r"=== (\w+) ===", text)
        layer = heading[1] if heading else layer
        if re.match(r"built \S+ in [\d.]+ s$", text):
            built.append(text.removeprefix("built "))
        print(f"{layer:>8} | {text}", flush=True)


def _build_in_background(
    layers: list[str], environment: dict[str, str], *, shown: bool
) -> subprocess.Popen[bytes] | None:
    if len(layers) < 2 or not NEED_BUILDS & set(layers):
        return None
    command = ["nice", "-n", str(_WAY_GIVEN), sys.executable, "-m", "tests.harness", "prepare"]
    where = None if shown else subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=where, stderr=where and subprocess.STDOUT, start_new_session=True
    )


def _lint(environment: dict[str, str], *, due: float) -> Outcome:
    outcome = Outcome(layer="lint")
    if cache := environment.get("FINETUNE_CACHE"):  # mypy goes by what files contain, of whatever checkout
        environment = {**environment, "MYPY_CACHE_DIR": str(Path(cache) / "mypy")}
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
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # and those that spin keep the others from running
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
            continue
        wrong = [found for found in (case.find("failure"), case.find("error")) if found is not None]
        outcome.failed += bool(wrong)
        outcome.passed += not wrong
        outcome.failures += [f"{case.get('classname')}::{case.get('name')}\n{_shortly(each)}" for each in wrong]
    return outcome


def _shortly(wrong: ElementTree.Element) -> str:
    """The lines with which pytest explains a failure, and where it was."""
    lines = [line for line in (wrong.text or wrong.get("message") or "").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("E ")] or lines
    return "\n".join(line[:_LINE] for line in [*said[:_LINES_OF_FAILURE], *lines[-1:]])


def _summarise(outcomes: list[Outcome], *, built: Sequence[str]) -> None:
    print("\n=== summary ===")
    for outcome in outcomes:
        print(
            f"{outcome.layer:<10} {outcome.passed:>5} passed {outcome.failed:>4} failed {outcome.skipped:>4} skipped"
            f" {outcome.seconds:>7.1f} s"
        )
        for reason in sorted(outcome.reasons):
            print(f"{'':<10} because: {reason}")
    if built:
        print(f"built meanwhile: {'; '.join(built)}")
    failures = [failure.split("\n") for outcome in outcomes for failure in outcome.failures]
    for name, *words in failures:
        print(f"failed: {name}", textwrap.indent("\n".join(words), "    "), sep="\n")
    for name, *words in failures[:_NAMED_AGAIN]:  # the last lines are all that is kept of a long output
        print(f"failed: {name}: {words[0].removeprefix('E').strip()[:_SHORT_LINE]}")
    passed, failed, skipped = (sum(getattr(o, name) for o in outcomes) for name in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--report", type=Path, help="write the outcomes there, and no summary: a lane of a larger run")
    parser.add_argument("layers", nargs="+", metavar="LAYER")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    sys.exit(main(given.layers, report=given.report))
