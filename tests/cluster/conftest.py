"""Fixtures of the cluster layer: a real Kubernetes with two nodes. Skipped as a whole where it cannot be had."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.cluster import evidence
from tests.cluster.jobs import Workspace, prepare
from tests.cluster.operator_install import InstalledOperator, install
from tests.harness import Cluster, MissingPrerequisite
from tests.harness.images import build_images
from tests.harness.preparation import prepare_collected, prepare_for_cluster
from tests.harness.prerequisites import require_for_cluster
from tests.harness.unchanged import remember, skip_where_unchanged

SMOKE = Path(__file__).with_name("test_cluster_smoke.py")
_RUNNING_CLUSTER = "FINETUNE_TEST_CLUSTER"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test."""
    prepare_collected(session, folder=Path(__file__).parent, prepare=prepare_for_cluster)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the harness's own tests where they have passed."""
    skip_where_unchanged(items, tests=SMOKE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Print the figures that tests recorded."""
    remember(terminalreporter, exit_status=exitstatus, tests=SMOKE)
    print_figures(terminalreporter)


def print_figures(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each that a test recorded."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name} {value}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what a failed test's cluster looks like, before its fixtures take it away."""
    report = yield
    folder: Path | None = item.funcargs.get("evidence_folder")
    if report.when == "call" and report.failed and folder is not None:
        evidence.collect(cluster=item.funcargs["cluster"], namespace=item.funcargs.get("namespace"), folder=folder)
        report.sections.append(("the cluster", f"objects and logs are in {folder}"))
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster for the whole session with images of this checkout, or the running one that the variable names."""
    try:
        require_for_cluster()
    except MissingPrerequisite as missing:
        pytest.skip(str(missing))
    images = build_images()
    running = os.environ.get(_RUNNING_CLUSTER)
    if running:
        yield Cluster.open(running).with_images(images)
    else:
        with Cluster.running(images=images) as fresh:
            yield fresh


@pytest.fixture(autouse=True)
def inside(cluster: Cluster) -> Iterator[None]:
    """Each test runs in the network of `node1`."""
    with cluster.inside():
        yield


@pytest.fixture(autouse=True)
def evidence_folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Where objects and logs go if the test fails."""
    return tmp_path_factory.getbasetemp() / re.sub(r"\W+", "-", request.node.name)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace that admits restricted pods only."""
    with cluster.namespace_named(labels={"pod-security.kubernetes.io/enforce": "restricted"}) as name:
        yield name


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> InstalledOperator:
    """The operator, installed from the committed manifests."""
    with cluster.inside():
        return install(cluster=cluster)


@pytest.fixture
def workspace(operator: InstalledOperator, namespace: str) -> Workspace:
    """A namespace with a base model and data on a claim, watched by the operator."""
    return prepare(cluster=operator.cluster, namespace=namespace)
