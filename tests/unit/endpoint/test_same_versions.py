"""The same version is not called a regression, and one that is worse in any of ten ways is (simulated; 200 rollouts:
`python -m tests.bench.same_versions`)."""

from __future__ import annotations

import pytest
from tests.bench.same_versions import WORSE, healthy, rollout


@pytest.mark.parametrize(("seed", "slowness"), [(29, 4.0), (179, 4.0), (195, 0.2)])
def test_the_same_version_is_no_regression(seed: int, slowness: float) -> None:
    # With stable's rate as it was seen for a limit, each of these was rolled back under guard.
    assert rollout(healthy, seed=seed, slowness=slowness) is None


@pytest.mark.parametrize("way", WORSE)
def test_a_worse_version_is_found(way: str) -> None:
    assert rollout(WORSE[way], seed=1, slowness=1.0) is not None
