"""Fixtures of the API layer: a real kube-apiserver with its etcd. Skipped as a whole where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.api.people import members, policed, team
from tests.harness import ApiServer, MissingPrerequisite
from tests.harness.preparation import prepare_collected, prepare_for_api
from tests.harness.prerequisites import require_for_api
from tests.harness.store import ROOT
from tests.patience import HANGS_S

__all__ = ["members", "policed", "team"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test."""
    prepare_collected(session, folder=Path(__file__).parent, prepare=prepare_for_api)


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """An API server for the whole session; a test works in its own `namespace`."""
    try:
        require_for_api()
    except MissingPrerequisite as missing:
        pytest.skip(str(missing))
    with ApiServer.running() as server:
        yield server


@pytest.fixture(scope="session")
def crds(apiserver: ApiServer) -> ApiServer:
    """The same API server with our types."""
    apiserver.kubectl.apply(ROOT / "manifests" / "crd")
    apiserver.kubectl.run(
        "wait", "--for=condition=Established", "customresourcedefinitions", "--all", f"--timeout={HANGS_S}s"
    )
    return apiserver


@pytest.fixture(scope="module")
def controllers(apiserver: ApiServer) -> Iterator[ApiServer]:
    """The same API server with kube-controller-manager: garbage collection, Jobs, namespaces; pods stay unscheduled."""
    apiserver.start_controllers()
    yield apiserver
    apiserver.stop_controllers()


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """A fresh namespace."""
    with apiserver.namespace_named() as name:
        yield name
