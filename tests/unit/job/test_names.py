"""Names of children: valid, stable, different."""

from __future__ import annotations

import re

import pytest
from tests.conformance.objects import job

from finetune_operator.job.children import LONGEST_CHILD_NAME, child_name, version_name

LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
"""RFC 1035: what a Service may be called."""


def test_short_names_are_readable() -> None:
    assert child_name(job="router", stage="Train", attempt=2) == "router-train-2"


@pytest.mark.parametrize("name", ["a", "7b-chat", "team.router", "x" * 63, "a" * 40 + "-" * 15 + "b", "a.b-c.d" * 9])
@pytest.mark.parametrize("attempt", [1, 100000])
def test_every_name_of_a_job_gives_names_for_services_and_hosts(name: str, attempt: int) -> None:
    made = child_name(job=name[:63], stage="Evaluate", attempt=attempt)
    assert LABEL.match(made), made
    assert len(made) <= LONGEST_CHILD_NAME
    assert len(f"{made}-1023") <= 63
    assert made == child_name(job=name[:63], stage="Evaluate", attempt=attempt)


def test_names_that_are_shortened_stay_apart() -> None:
    names = ["x" * 62 + "a", "x" * 62 + "b", "team.router", "team-router", "7b", "r-7b"]
    assert len({child_name(job=name, stage="Train", attempt=1) for name in names}) == len(names)


def test_a_version_is_named_after_its_job() -> None:
    assert version_name(job=job(), taken=False) == "router"
    assert re.fullmatch(r"router-[0-9a-f]{8}", version_name(job=job(), taken=True))
