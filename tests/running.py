"""A pytest plugin that keeps a file with the tests that run at this moment: what a layer that hangs is asked for.

`pytest -p tests.running` with the file's path in $FINETUNE_RUNNING_TESTS. With pytest-xdist the process that hands out
the tests writes it, for all its workers.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FILE_VARIABLE = "FINETUNE_RUNNING_TESTS"


class _Running:
    """Hooks of one pytest process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tests.append(nodeid)
        self._write()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid in self._tests:
            self._tests.remove(nodeid)
        self._write()

    def _write(self) -> None:
        self._path.write_text("".join(f"{name}\n" for name in self._tests))


def pytest_configure(config: pytest.Config) -> None:
    """Register, but not in a worker: its tests are in the file of the process above it."""
    path = os.environ.get(FILE_VARIABLE)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Running(Path(path)))


def read(path: Path) -> list[str]:
    """The tests that ran when the file was last written."""
    return path.read_text().split("\n")[:-1] if path.exists() else []
