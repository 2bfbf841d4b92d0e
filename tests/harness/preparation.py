"""Building and installing what a layer of tests needs before its first test, whose time limit is not meant for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness import tools
from tests.harness.errors import MissingPrerequisite
from tests.harness.images import build_images
from tests.harness.prerequisites import (
    require_for_api,
    require_for_browser,
    require_for_chart,
    require_for_cluster,
)

TEST_PROGRAMS = tuple(
    dict.fromkeys(
        (
            *tools.TRAINER_PROGRAMS,
            *tools.LOCAL_PROGRAMS,
            *tools.API_TEST_PROGRAMS,
            *tools.CLUSTER_PROGRAMS,
            *tools.CHART_PROGRAMS,
        ),
    )
)
"""What the tests run. A program that a new test needs belongs here; benchmarks build theirs on demand."""


def prepare_for_trainer() -> None:
    """Build the S3 server; raises `MissingPrerequisite` where that cannot be."""
    tools.programs(tools.TRAINER_PROGRAMS)


def prepare_for_local() -> None:
    """Build Prometheus; raises `MissingPrerequisite` where that cannot be."""
    tools.programs(tools.LOCAL_PROGRAMS)


def prepare_for_api() -> None:
    """Build kube-apiserver and what belongs to it; raises `MissingPrerequisite` where that cannot be."""
    require_for_api()
    tools.programs(tools.API_TEST_PROGRAMS)


def prepare_for_chart() -> None:
    """Build Helm and kube-apiserver; raises `MissingPrerequisite` where that cannot be."""
    require_for_chart()
    tools.programs(tools.CHART_PROGRAMS)


def prepare_for_cluster() -> None:
    """Install packages, build programs and images; raises `MissingPrerequisite` where that cannot be."""
    require_for_cluster()
    tools.programs(tools.CLUSTER_PROGRAMS)
    build_images()


def prepare_for_browser() -> None:
    """Install Chromium; raises `MissingPrerequisite` where that cannot be."""
    require_for_browser()


def prepare_collected(session: pytest.Session, *, folder: Path, prepare: Callable[[], None]) -> None:
    """For a conftest's `pytest_collection_finish`: prepare, visibly, if tests of `folder` are going to run."""
    if session.config.option.collectonly or not any(folder in item.path.parents for item in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled(), suppress(MissingPrerequisite):  # the fixture skips, with the reason
        prepare()
