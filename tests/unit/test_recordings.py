"""tests/data/golden/recordings.yaml, which GitOps tools' judgements rest on, is what the operator writes."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
from tests.conformance.golden import check
from tests.simulation.recordings import recorded


@pytest.fixture
def counted_uids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects get the same UIDs each time."""

    def numbers() -> Iterator[UUID]:
        for number in range(1, 1 << 32):
            yield UUID(f"{number:08x}-0000-4000-8000-{number:012x}")

    made = numbers()
    monkeypatch.setattr("tests.simulation.memory_cluster.uuid.uuid4", lambda: next(made))


@pytest.mark.usefixtures("counted_uids")
async def test_recordings_are_what_the_operator_writes() -> None:
    found = await recorded()
    check(
        "recordings",
        [
            {"recording": name, "object": manifest}
            for recordings in found.values()
            for name, manifest in recordings.items()
        ],
    )
