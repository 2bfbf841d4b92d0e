"""A browser, installed where it may be; else its tests are skipped, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.harness import MissingPrerequisite
from tests.harness.preparation import prepare_collected, prepare_for_browser
from tests.harness.prerequisites import require_for_browser


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install before the first test."""
    prepare_collected(session, folder=Path(__file__).parent, prepare=prepare_for_browser)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path."""
    try:
        return require_for_browser()
    except MissingPrerequisite as missing:
        pytest.skip(str(missing))
