"""Fixtures of the chart layer: both Helms. Its tests are skipped where these or a kube-apiserver cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chart.helm import Helm
from tests.harness import MissingPrerequisite, tools
from tests.harness.preparation import prepare_collected, prepare_for_chart
from tests.harness.prerequisites import require_for_chart


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test."""
    prepare_collected(session, folder=Path(__file__).parent, prepare=prepare_for_chart)


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    """The programs of this layer."""
    try:
        require_for_chart()
    except MissingPrerequisite as missing:
        pytest.skip(str(missing))
    return tools.programs(tools.CHART_PROGRAMS)


@pytest.fixture(scope="session")
def helm3(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm 3."""
    return Helm(program=programs["helm"], major=3, home=tmp_path_factory.mktemp("helm3"))


@pytest.fixture(scope="session")
def helm4(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm 4; alone where the two do not differ."""
    return Helm(program=programs["helm4"], major=4, home=tmp_path_factory.mktemp("helm4"))


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, helm3: Helm, helm4: Helm) -> Helm:
    """Helm 3 and Helm 4: a test that uses it runs with both."""
    return helm3 if request.param == 3 else helm4
