"""Tests of the harness itself run only where something of it has changed since they passed on this machine.

A conftest of them calls `skip_where_unchanged` and `remember`. $FINETUNE_ALL_TESTS=1 runs them nevertheless.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.harness import tools
from tests.harness.store import ROOT, cache, digest

ALL_VARIABLE = "FINETUNE_ALL_TESTS"
_RUNNERS = ("run_layers", "running", "left_behind", "forking")
_HARNESS = ("tests/harness", "tests/tools", *(f"tests/{name}.py" for name in _RUNNERS))
_UNDER_IT = ("requirements", "operator/Dockerfile", "operator/gateway.Dockerfile", "trainer_image/Dockerfile")
"""What the harness builds its images from, besides the code that they carry."""


def skip_where_unchanged(items: Sequence[pytest.Item], *, tests: Path) -> None:
    """For `pytest_collection_modifyitems`: skip the tests below `tests`, a file or a folder, if they have passed."""
    ours = [item for item in items if _below(item.path, tests)]
    if ours and not os.environ.get(ALL_VARIABLE) and _passed(tests).exists():
        reason = f"the harness is as it was when these passed here (${ALL_VARIABLE}=1 runs them)"
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))


def remember(reporter: pytest.TerminalReporter, *, exit_status: int, tests: Path) -> None:
    """For `pytest_terminal_summary`: remember that the tests below `tests` passed, where all of them were asked for."""
    config = reporter.config
    chosen = config.option.keyword or config.option.markexpr or config.option.deselect
    asked = any(_below(tests, (config.invocation_params.dir / each).resolve()) for each in config.args)
    if exit_status != 0 or chosen or not asked:
        return
    ended = {
        category: [
            report for report in reporter.getreports(category) if _below(ROOT / report.nodeid.split("::")[0], tests)
        ]
        for category in ("passed", "skipped")
    }
    if ended["passed"] and not ended["skipped"]:
        _passed(tests).parent.mkdir(exist_ok=True)
        _passed(tests).touch()


def _passed(tests: Path) -> Path:
    paths = [ROOT / name for name in (*_HARNESS, *_UNDER_IT)]
    machine = [platform.release(), platform.python_version(), tools.go_version() or ""]
    return cache() / "passed" / f"{tests.stem}-{digest(texts=machine, paths=[tests, *paths])}"


def _below(path: Path, tests: Path) -> bool:
    return path == tests or tests in path.parents
