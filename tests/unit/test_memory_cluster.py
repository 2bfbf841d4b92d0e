"""The cluster in memory keeps the contract that the real ones keep."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.conformance.cluster_conformance import ClusterConformance
from tests.simulation.memory_cluster import MemoryCluster


class TestMemoryCluster(ClusterConformance):
    """See ClusterConformance."""

    @pytest.fixture
    def cluster(self) -> MemoryCluster:
        return MemoryCluster(clock=lambda: datetime.now(UTC))

    @pytest.fixture
    def namespace(self) -> str:
        return "ml"


async def test_a_pod_that_runs_takes_its_grace_period() -> None:
    cluster = MemoryCluster(clock=lambda: datetime(2026, 1, 5, tzinfo=UTC))
    pod = await cluster.create(
        manifest={
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "ml"},
            "spec": {"nodeName": "node1", "terminationGracePeriodSeconds": 120},
        }
    )
    await cluster.delete(kind="Pod", namespace="ml", name="p", uid=pod["metadata"]["uid"])
    found = await cluster.get(kind="Pod", namespace="ml", name="p")
    assert found is not None
    assert found["metadata"]["deletionTimestamp"] == "2026-01-05T00:02:00Z"
    cluster.remove(kind="Pod", namespace="ml", name="p")
    assert await cluster.get(kind="Pod", namespace="ml", name="p") is None
