"""What counts as a sample, and what a step's rows make of it."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_api.modelendpoint import LiveMetric
from finetune_api.observations import ArmCounts, Observations, PairCounts
from finetune_operator.endpoint.analysis import advance
from finetune_operator.endpoint.analysis_rows import rows
from finetune_operator.endpoint.analysis_state import AnalysisState, Scope
from finetune_operator.ports import Report

SCOPE = Scope(
    part="Canary",
    key="new/Canary/0/1",
    candidate="new",
    stable="old",
    rules=("default",),
    since_epoch=1,
    metrics=(LiveMetric(name="quality", max_regression=0.05),),
    alpha={"quality": 0.05},
)


def row(*, clients: tuple[int, int] = (0, 0), prompts: tuple[int, int] = (0, 0), needed: int = 100) -> tuple[str, int]:
    """Verdict and samples; each pair: answers of the candidate, and how many of them were bad."""
    arms = [
        ArmCounts(epoch=1, rule="default", variant="new", requests=clients[0], bad=clients[1]),
        ArmCounts(epoch=1, rule="default", variant="old", requests=clients[0]),
    ]
    pairs = [
        PairCounts(
            epoch=1,
            source="Probe",
            candidate="new",
            stable="old",
            metric="quality",
            pairs=prompts[0],
            candidate_only=prompts[1],
        )
    ]
    said = Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=1, arms=arms, pairs=pairs)
    report = Report(observations=said, received=datetime(2026, 11, 21, tzinfo=UTC))
    state = advance(AnalysisState(key=SCOPE.key), scope=SCOPE, reports=(report,), elapsed_seconds=60.0)
    (found,) = rows(state, scope=SCOPE, needed=needed)
    return found.verdict, found.samples


def test_requests_and_prompts_are_samples_alike() -> None:
    assert row(clients=(60, 0), prompts=(50, 0)) == ("Pass", 110)
    assert row(prompts=(100, 0)) == ("Pass", 100)
    assert row(clients=(60, 0), prompts=(30, 0)) == ("Inconclusive", 90)


def test_prompts_that_went_well_do_not_make_up_for_clients_who_fare_badly() -> None:
    assert row(clients=(10, 2), prompts=(190, 0)) == ("Inconclusive", 200)


def test_nor_the_other_way_round() -> None:
    assert row(clients=(190, 0), prompts=(10, 2)) == ("Inconclusive", 200)
