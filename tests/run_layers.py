"""Run layers of the tests one after the other and say at the end what passed, what was skipped and why.

`python tests/run_layers.py unit api ...`; each layer is one pytest run (or the linters). What the cluster layers need
(Kubernetes binaries, images) is built in the background while the first layers run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
LINTERS = (
    (".venv/bin/ruff", "check", "."),
    (".venv/bin/ruff", "format", "--check", "."),
    (".venv/bin/mypy",),
    (".venv/bin/lint-imports", "--no-cache"),
)
BUILT_FIRST = {"api", "cluster"}


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
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")])}
    builder = _build_in_background(layers, environment)
    outcomes: list[Outcome] = []
    try:
        for layer in layers:
            if builder is not None and layer in BUILT_FIRST:
                builder.wait()
                builder = None
            print(f"\n=== {layer} ===", flush=True)
            began = time.monotonic()
            outcome = _lint(environment) if layer == "lint" else _pytest(layer, environment)
            outcome.seconds = time.monotonic() - began
            outcomes.append(outcome)
    finally:
        if builder is not None:
            builder.terminate()
            builder.wait()
    _summarise(outcomes)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _build_in_background(layers: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes] | None:
    if len(layers) < 2 or not BUILT_FIRST & set(layers):
        return None
    command = [sys.executable, "-m", "tests.harness", "prepare"]
    return subprocess.Popen(["nice", "-n", "10", *command], cwd=ROOT, env=environment)


def _lint(environment: dict[str, str]) -> Outcome:
    outcome = Outcome(layer="lint")
    for command in LINTERS:
        print("$", " ".join(command), flush=True)
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
    return outcome


def _pytest(layer: str, environment: dict[str, str]) -> Outcome:
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"tests/{layer}", "-q", f"--junit-xml={report}"]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        outcome = _read(layer, report)
    if code not in (0, 1, 5) or (code == 1 and outcome.failed == 0):
        outcome.failed += 1
        outcome.reasons.add(f"pytest ended with exit status {code}")
    return outcome


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
