"""Cores that a container may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune_trainer.process.cores import available_cores, limit_threads

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", ALL), ("100000 100000", 1), ("50000 100000", 1), ("110000 100000", min(ALL, 2)), ("", ALL)],
)
def test_a_limit_of_time_counts_as_cores(text: str, cores: int, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert available_cores(quota=quota) == cores


def test_without_a_limit_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(quota=tmp_path / "none") == ALL


def test_settings_of_the_user_stay() -> None:
    environment = {"OMP_NUM_THREADS": "3"}
    limit_threads(environment)
    assert environment == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}
