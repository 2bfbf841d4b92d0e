"""What the trainer's tests share: a small model, and data prepared once for each worker process."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from tests.harness.preparation import prepare_collected, prepare_for_trainer
from tests.trainer.small_run import SmallRuns


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first: where workers share the modules, they then end together."""
    items.sort(key=lambda item: not item.path.name.startswith("test_training"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test, when all is imported."""
    prepare_collected(session, folder=Path(__file__).parent, prepare=prepare_for_trainer)
    gc.freeze()  # what was imported stays: going through a million objects again and again takes a tenth of the time


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    """Runs of one model on one data set; each takes a name of its own."""
    return SmallRuns.make(tmp_path_factory.mktemp("training"))
