"""The harness's own tests run where the harness has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.harness.unchanged import remember, skip_where_unchanged

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what has passed."""
    skip_where_unchanged(items, tests=HERE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Remember what has passed."""
    remember(terminalreporter, exit_status=exitstatus, tests=HERE)
