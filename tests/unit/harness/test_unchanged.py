"""The harness's own tests are left out only where all of them passed and nothing has changed since."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.harness import unchanged
from tests.harness.store import ROOT

TESTS = ROOT / "tests" / "unit" / "harness"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(unchanged.ALL_VARIABLE, raising=False)


def reporter(*, keyword: str = "", args: tuple[str, ...] = ("tests/unit",), skipped: int = 0) -> Any:
    """What a run of pytest says at its end."""
    report = SimpleNamespace(nodeid="tests/unit/harness/test_unchanged.py::test_it")
    reports = {"passed": [report], "skipped": [report] * skipped}
    option = SimpleNamespace(keyword=keyword, markexpr="", deselect=None)
    config = SimpleNamespace(option=option, args=args, invocation_params=SimpleNamespace(dir=ROOT))
    return SimpleNamespace(config=config, getreports=reports.__getitem__)


def is_skipped() -> bool:
    item = SimpleNamespace(path=TESTS / "test_unchanged.py", markers=[])
    item.add_marker = item.markers.append
    unchanged.skip_where_unchanged([item], tests=TESTS)  # type: ignore[list-item]
    return bool(item.markers)


def test_what_passed_is_left_out_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_skipped()
    unchanged.remember(reporter(), exit_status=0, tests=TESTS)
    assert is_skipped()
    monkeypatch.setenv(unchanged.ALL_VARIABLE, "1")
    assert not is_skipped()
    monkeypatch.delenv(unchanged.ALL_VARIABLE)
    (tmp_path / "changed.py").touch()
    monkeypatch.setattr(unchanged, "_HARNESS", (*unchanged._HARNESS, str(tmp_path / "changed.py")))
    assert not is_skipped()


@pytest.mark.parametrize(
    ("said", "exit_status"),
    [
        (reporter(), 1),
        (reporter(skipped=1), 0),
        (reporter(keyword="some"), 0),
        (reporter(args=("tests/unit/harness/test_harness.py",)), 0),
        (reporter(args=("tests/unit/harness/test_harness.py::test_it",)), 0),
        (reporter(args=("tests/unit/gates",)), 0),
    ],
)
def test_what_did_not_all_pass_runs_again(said: Any, exit_status: int) -> None:
    unchanged.remember(said, exit_status=exit_status, tests=TESTS)
    assert not is_skipped()
