"""What counts as a sample, and what a step's rows make of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from finetune_api.modelendpoint import AnalysisRow, LiveMetric, ModelEndpointSpec
from finetune_api.observations import ArmCounts, Observations, PairCounts
from finetune_operator.endpoint.analysis import advance
from finetune_operator.endpoint.analysis_rows import rows
from finetune_operator.endpoint.analysis_state import AnalysisState, Part, Scope
from finetune_operator.endpoint.plan import CLIENT_ERRORS, resolve
from finetune_operator.endpoint.reports import Gateways
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


NOW = datetime(2026, 11, 21, tzinfo=UTC)


def report(
    *, gateway: str = "g", boot: str = "b", clients: tuple[int, int] = (0, 0), prompts: tuple[int, int] = (0, 0)
) -> Report:
    """What a gateway says; each pair of numbers: answers of the candidate, and how many of them were bad."""
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
    said = Observations(endpoint="e", gateway=gateway, boot_id=boot, acknowledged_epoch=1, arms=arms, pairs=pairs)
    return Report(observations=said, received=NOW)


def after(*reports: Report, state: AnalysisState | None = None, names: tuple[str, ...] = ("g",)) -> AnalysisState:
    """The state once these reports were taken in."""
    gateways = Gateways(names=names, reports=reports, now=NOW)
    return advance(state or AnalysisState(key=SCOPE.key), scope=SCOPE, gateways=gateways, elapsed_seconds=60.0)


def row(state: AnalysisState) -> tuple[str, int]:
    """Verdict and samples, where 100 are needed."""
    (found,) = rows(state, scope=SCOPE, needed=100)
    return found.verdict, found.samples


def test_requests_and_prompts_are_samples_alike() -> None:
    assert row(after(report(clients=(60, 0), prompts=(50, 0)))) == ("Pass", 110)
    assert row(after(report(prompts=(100, 0)))) == ("Pass", 100)
    assert row(after(report(clients=(60, 0), prompts=(30, 0)))) == ("Inconclusive", 90)


def test_prompts_that_went_well_do_not_make_up_for_clients_who_fare_badly() -> None:
    assert row(after(report(clients=(10, 2), prompts=(190, 0)))) == ("Inconclusive", 200)


def test_nor_the_other_way_round() -> None:
    assert row(after(report(clients=(190, 0), prompts=(10, 2)))) == ("Inconclusive", 200)


def test_all_gateways_send_the_same_prompts_and_those_of_one_count() -> None:
    one, other = report(gateway="g1", prompts=(50, 0)), report(gateway="g2", prompts=(60, 0))
    state = after(one, other, names=("g1", "g2"))
    assert row(state)[1] == 50
    assert row(after(one, other, names=("g1", "g2"), state=state))[1] == 50


@pytest.mark.parametrize(
    ("reports", "names"),
    [
        ((report(gateway="g1", prompts=(50, 0)), report(gateway="g2", prompts=(60, 0))), ("g2",)),
        ((report(gateway="g1", boot="again", prompts=(60, 0)),), ("g1",)),
    ],
    ids=["its pod is gone", "it has started again"],
)
def test_where_that_one_has_ended_another_one_goes_on(reports: tuple[Report, ...], names: tuple[str, ...]) -> None:
    state = after(report(gateway="g1", prompts=(50, 0)), names=("g1", "g2"))
    assert row(after(*reports, names=names, state=state)) == ("Pass", 110)


def test_one_that_has_not_reported_to_a_restarted_operator_is_waited_for() -> None:
    state = after(report(gateway="g1", prompts=(50, 0)), names=("g1", "g2"))
    assert row(after(report(gateway="g2", prompts=(60, 0)), names=("g1", "g2"), state=state))[1] == 50


def test_votes_that_come_after_their_requests_count_once() -> None:
    """Forty answers, then forty votes against them, then more answers: the rate is that of the gateway's counts."""
    state = after(report(clients=(40, 0)))
    assert quality(state) == (0, 40)
    state = after(report(clients=(40, 40)), state=state)
    assert quality(state)[0] == 40, "none is lost, and none waits for the next request"
    state = after(report(clients=(40, 40)), state=state)
    assert quality(state)[0] == 40, "none counts twice"
    state = after(report(clients=(200, 100)), state=state)
    assert quality(state) == (100, 200)
    assert row(state)[0] == "Fail"


def test_late_votes_on_both_arms_alike_prove_nothing() -> None:
    state: AnalysisState | None = None
    for number in range(1, 60):
        state = after(both_arms(requests=20 * number, bad=6 * (number - 1)), state=state)
    assert state is not None
    assert row(state)[0] == "Pass"
    arms = dict(state.metric("quality").arms)["default"]
    assert (arms.candidate.rate, arms.stable.rate) == (pytest.approx(0.295, abs=0.01),) * 2


def both_arms(*, requests: int, bad: int) -> Report:
    counts = [ArmCounts(epoch=1, rule="default", variant=each, requests=requests, bad=bad) for each in ("new", "old")]
    return Report(
        observations=Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=1, arms=counts),
        received=NOW,
    )


def quality(state: AnalysisState) -> tuple[float, float]:
    """Bad answers of the candidate, and all that were taken in."""
    candidate = dict(state.metric("quality").arms)["default"].candidate
    pending = dict(state.metric("quality").arms)["default"].pending.candidate
    return candidate.bad + pending.bad, candidate.total + pending.total


def client_errors(*, candidate: tuple[int, int], stable: tuple[int, int], part: Part = "Canary") -> list[AnalysisRow]:
    """Rows of a step whose requests all went well, but that versions called so many users' requests wrong."""
    metrics = (LiveMetric(name="error_rate", max_regression=0.01), CLIENT_ERRORS)
    scope = replace(SCOPE, part=part, metrics=metrics, alpha={metric.name: 0.01 for metric in metrics})
    arms = [
        ArmCounts(epoch=1, rule="default", variant=variant, requests=200, clients=clients, client_errors=refused)
        for variant, (clients, refused) in (("new", candidate), ("old", stable))
    ]
    said = Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=1, arms=arms)
    gateways = Gateways(names=("g",), reports=(Report(observations=said, received=NOW),), now=NOW)
    state = advance(AnalysisState(key=scope.key), scope=scope, gateways=gateways, elapsed_seconds=60.0)
    return rows(state, scope=scope, needed=100)


def test_a_version_that_refuses_users_is_worse_and_one_that_refuses_as_many_is_not() -> None:
    assert [row.verdict for row in client_errors(candidate=(40, 40), stable=(40, 0))] == ["Pass", "Fail"]
    assert [row.verdict for row in client_errors(candidate=(40, 20), stable=(40, 20))] == ["Pass", "Pass"]


def test_a_gateway_that_does_not_count_refusals_holds_nothing_up() -> None:
    assert [row.metric for row in client_errors(candidate=(0, 0), stable=(0, 0))] == ["error_rate"]


@pytest.mark.parametrize(
    ("named", "margin"), [(None, 0.05), ({"name": "client_error_rate", "maxRegression": 0.2}, 0.2)]
)
def test_refusals_are_judged_whether_they_are_named_or_not(named: dict[str, object] | None, margin: float) -> None:
    metrics = [{"name": "quality", "maxRegression": 0.1}, *([named] if named else [])]
    spec = {"task": "Chat", "serving": {"runtime": "Transformers"}, "rollout": {"metrics": metrics}}
    plan = resolve(spec=ModelEndpointSpec.model_validate(spec), fast=False)
    assert [(each.name, each.max_regression) for each in plan.metrics] == [
        ("quality", 0.1), ("client_error_rate", margin)
    ]  # fmt: skip
