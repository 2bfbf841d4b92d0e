"""What counts as a sample, and what a step's rows make of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.modelendpoint import AnalysisRow, LiveMetric, ModelEndpointSpec
from finetune_api.observations import ArmCounts, Observations, PairCounts
from finetune_operator.core.ports import Report
from finetune_operator.endpoint.analysis.analysis import advance, begun
from finetune_operator.endpoint.analysis.reports import Gateways
from finetune_operator.endpoint.analysis.rows import rows
from finetune_operator.endpoint.analysis.state import AnalysisState, Part, Scope, state_from_dict
from finetune_operator.endpoint.rollout.plan import CLIENT_ERRORS, resolve

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
    *,
    gateway: str = "g",
    boot: str = "b",
    clients: tuple[int, int] = (0, 0),
    prompts: tuple[int, int] = (0, 0),
    copies: tuple[int, int] = (0, 0),
) -> Report:
    """What a gateway says; each pair of numbers: answers of the candidate, and how many of them were bad."""
    arms = [
        ArmCounts(epoch=1, rule="default", variant="new", requests=clients[0], bad=clients[1]),
        ArmCounts(epoch=1, rule="default", variant="old", requests=clients[0]),
    ]
    told = {"epoch": 1, "candidate": "new", "stable": "old", "metric": "quality"}
    pairs = [
        PairCounts.model_validate({**told, "source": source, "pairs": each[0], "candidate_only": each[1]})
        for source, each in (("Probe", prompts), ("Shadow", copies))
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


def test_copies_that_cannot_tell_do_not_make_up_for_held_out_prompts_that_can() -> None:
    """Wrong labels look well to whoever does not know the right ones."""
    assert row(after(report(copies=(1000, 0), prompts=(200, 60)))) == ("Fail", 1200)
    assert row(after(report(copies=(1000, 0), prompts=(200, 20)))) == ("Inconclusive", 1200)
    assert row(after(report(copies=(200, 60), prompts=(1000, 0)))) == ("Fail", 1200)
    assert row(after(report(copies=(1000, 0), prompts=(200, 0)))) == ("Pass", 1200)


def rises_under_guard(state: AnalysisState, *, scope: Scope, errors: int) -> bool:
    """Whether a promoted version is caught that gives so many errors among 400 requests."""
    watched = ArmCounts(epoch=3, rule="default", variant="new", requests=400, errors=errors)
    said = Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=3, arms=[watched])
    gateways = Gateways(names=("g",), reports=(Report(observations=said, received=NOW),), now=NOW)
    scope = replace(scope, reference=state.reference())
    found = rows(advance(state, scope=scope, gateways=gateways, elapsed_seconds=60.0), scope=scope, needed=0)
    return any(each.verdict == "Fail" for each in found)


ERRORS = replace(SCOPE, metrics=(LiveMetric(name="error_rate", max_regression=0.01),), alpha={"error_rate": 0.01})
OF_OLD = ArmCounts(epoch=2, rule="default", variant="old", requests=500, errors=10)


@pytest.mark.parametrize("shadowed", [True, False], ids=["after a shadow", "after nothing"])
def test_a_guard_without_a_step_before_it_knows_what_stable_has_shown(shadowed: bool) -> None:
    said = Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=2, arms=[OF_OLD])
    gateways = Gateways(names=("g",), reports=(Report(observations=said, received=NOW),), now=NOW)
    guard = replace(ERRORS, part="Guard", key="guard", since_epoch=3, guard_seconds=3600.0)
    if shadowed:
        shadow = replace(ERRORS, part="Shadow", rules=(), since_epoch=2)
        before = advance(AnalysisState(key="shadow"), scope=shadow, gateways=gateways, elapsed_seconds=60.0)
        assert rows(before, scope=shadow, needed=1)[0].samples == 0, "its own requests are no samples"
        state = replace(before, key="guard", metrics=(), arm_ledgers=())
    else:
        state = begun(scope=guard, before=None, gateways=gateways)
    assert state.rates == (("error_rate", 10.0, 500.0),)
    assert rises_under_guard(state, scope=guard, errors=100)
    assert not rises_under_guard(state, scope=guard, errors=8)


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


def test_a_version_that_gets_worse_while_nobody_asks_the_other_has_not_passed() -> None:
    """Stable's few users are capped or gone. Nothing can be proven without them, and what was seen is no pass."""
    early, later = report(clients=(60, 0)), report(clients=(160, 60))
    stable_stands_still = [*later.observations.arms[:1], *early.observations.arms[1:]]
    later = replace(later, observations=later.observations.model_copy(update={"arms": stable_stands_still}))
    state = after(early)
    state = after(later, state=state)
    assert row(state) == ("Inconclusive", 160)
    assert rows(state, scope=SCOPE, needed=100)[0].candidate == 0.375


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


def test_a_pass_of_nothing_says_so() -> None:
    found = client_errors(candidate=(0, 0), stable=(3, 0))[-1]
    assert (found.metric, found.samples, found.verdict) == ("client_error_rate", 0, "Pass")
    assert found.reason == "nothing to count so far"


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


PAIRS = PairCounts.model_validate(
    {"epoch": 1, "source": "Shadow", "candidate": "new", "stable": "old", "metric": "quality"}
    | {"pairs": 100, "candidateOnly": 6, "stableOnly": 1, "both": 20}
)


def shown(
    scope: Scope, *, arms: tuple[ArmCounts, ...] = (), pairs: tuple[PairCounts, ...] = ()
) -> tuple[object, object]:
    """Of the one row: the candidate's rate, and the one that it is compared with."""
    said = Observations(
        endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=1, arms=list(arms), pairs=list(pairs)
    )
    gateways = Gateways(names=("g",), reports=(Report(observations=said, received=NOW),), now=NOW)
    state = AnalysisState(key=scope.key, rates=(("quality", 5.0, 50.0),))
    (found,) = rows(advance(state, scope=scope, gateways=gateways, elapsed_seconds=60.0), scope=scope, needed=1)
    return found.candidate, found.baseline


@pytest.mark.parametrize("part", ["Shadow", "Canary", "Guard"])
def test_pairs_show_the_rates_of_both(part: Part) -> None:
    assert shown(replace(SCOPE, part=part, guard_seconds=60.0), pairs=(PAIRS,)) == (0.26, 0.21)


def test_a_guard_shows_the_rates_of_both() -> None:
    guard = replace(SCOPE, part="Guard", guard_seconds=60.0, reference={"quality": 0.2})
    new = ArmCounts(epoch=1, rule="default", variant="new", requests=200, bad=24)
    assert shown(guard, arms=(new,)) == (0.12, 0.1), "of the version before what it showed before the promotion"
    held_back = ArmCounts(epoch=1, rule="default", variant="old", requests=50, bad=4)
    assert shown(guard, arms=(new, held_back)) == (0.12, 0.08), "of its own users, where it has some"


def test_a_shadow_that_an_older_operator_began_goes_on() -> None:
    told = replace(SCOPE, part="Shadow")
    said = Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=1, pairs=[PAIRS])
    gateways = Gateways(names=("g",), reports=(Report(observations=said, received=NOW),), now=NOW)
    before = advance(AnalysisState(key=SCOPE.key), scope=told, gateways=gateways, elapsed_seconds=60.0)
    kept = tuple(each for each in before.pair_ledgers if not each[0].endswith("/both"))
    after_it = advance(replace(before, pair_ledgers=kept), scope=told, gateways=gateways, elapsed_seconds=61.0)
    assert rows(after_it, scope=told, needed=1) == rows(before, scope=told, needed=1)


def test_a_step_that_an_operator_began_that_knew_no_client_errors_goes_on() -> None:
    """Also where no gateway has said anything since."""
    before = after(report(clients=(100, 0)))
    kept = tuple(each for each in before.arm_ledgers if not each[0].endswith("/clients"))
    assert row(after(state=replace(before, arm_ledgers=kept))) == row(before)


TWO_RULES = replace(SCOPE, rules=("testers", "default"))


def of_rules(**counts: tuple[int, int, int, int]) -> Report:
    """By rule: answers of the candidate and how many of them were bad, then the same of stable."""
    arms = [
        ArmCounts(epoch=1, rule=rule, variant=variant, requests=requests, bad=bad)
        for rule, (*new, old, bad_of_old) in counts.items()
        for variant, requests, bad in (("new", *new), ("old", old, bad_of_old))
        if requests
    ]
    said = Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=1, arms=arms)
    return Report(observations=said, received=NOW)


@pytest.mark.parametrize(
    ("testers", "default", "verdict"),
    [
        ((800, 160, 200, 40), (500, 5, 9500, 95), "Pass"),  # testers see more faults, whoever answers
        ((800, 0, 200, 0), (100, 30, 1900, 38), "Inconclusive"),  # they see none, and others see worse answers
        ((800, 0, 0, 0), (500, 5, 9500, 95), "Pass"),
        ((800, 240, 0, 0), (500, 5, 9500, 95), "Inconclusive"),
    ],
    ids=["equal among other users", "worse among most users", "alone and well", "alone and not well"],
)
def test_versions_are_compared_within_each_rule(
    testers: tuple[int, int, int, int], default: tuple[int, int, int, int], verdict: str
) -> None:
    gateways = Gateways(names=("g",), reports=(of_rules(testers=testers, default=default),), now=NOW)
    state = advance(AnalysisState(key=SCOPE.key), scope=TWO_RULES, gateways=gateways, elapsed_seconds=60.0)
    without_proofs = replace(state, metrics=())
    assert rows(without_proofs, scope=TWO_RULES, needed=100)[0].verdict == verdict


def test_without_an_answer_of_stable_a_bad_rate_is_no_pass() -> None:
    """The few users that a header names may all be given the candidate."""
    (found,) = rows(after(of_rules(default=(120, 30, 0, 0))), scope=SCOPE, needed=100)
    assert (found.verdict, found.candidate, found.baseline) == ("Inconclusive", 0.25, None)
    assert row(after(of_rules(default=(120, 3, 0, 0)))) == ("Pass", 120), "no version can be better by more"
    known = AnalysisState(key=SCOPE.key, rates=(("quality", 240.0, 1000.0),))
    assert row(after(of_rules(default=(120, 30, 0, 0)), state=known)) == ("Pass", 120), "stable was as bad before"


def test_a_refusal_where_stable_has_no_users_holds_nothing_up() -> None:
    assert [row.verdict for row in client_errors(candidate=(1, 1), stable=(0, 0))] == ["Pass", "Pass"]


def test_an_epoch_that_is_forgotten_before_another_one_has_counts_stays_counted() -> None:
    state = after(of_epochs((1, 10, 0)))
    quiet = of_epochs((1, 10, 0))
    moved_on = quiet.observations.model_copy(update={"acknowledged_epoch": 9})
    state = after(replace(quiet, observations=moved_on), state=state)
    assert row(after(of_epochs((10, 3, 0)), state=state))[1] == 13


def test_what_a_gateway_forgets_of_old_epochs_stays_counted() -> None:
    """Somebody puts the routes back again and again within one step; a gateway keeps the last few epochs."""
    state = AnalysisState(key=SCOPE.key)
    pair = {"source": "Probe", "candidate": "new", "stable": "old", "metric": "quality", "pairs": 3}
    for newest in range(1, 21):
        kept = range(max(1, newest - 8), newest + 1)
        arms = [ArmCounts(epoch=epoch, rule="default", variant="new", requests=10) for epoch in kept]
        pairs = [PairCounts.model_validate({"epoch": epoch, **pair}) for epoch in kept]
        said = Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=newest, arms=arms, pairs=pairs)
        state = after(Report(observations=said, received=NOW), state=state)
    assert row(state)[1] == 20 * 13
    assert all(len(ledger.sources) <= 10 for _, ledger in state.epochs), "what is kept of old epochs does not grow"
    assert state_from_dict(json.loads(json.dumps(state.to_dict()))) == state


def starts(*numbers: int) -> tuple[Report, ...]:
    """What starts of one gateway have said, the last one just now: 10 requests and 4 held-out prompts each."""
    told = [report(boot=f"{number:016x}", clients=(10, 1), prompts=(4, 0)) for number in numbers]
    return tuple(
        replace(each, received=NOW + timedelta(minutes=number)) for number, each in zip(numbers, told, strict=True)
    )


def after_start(number: int, *, kept: int, state: AnalysisState) -> AnalysisState:
    """The state once this start has reported; the operator still has the reports of the last `kept`."""
    reports = starts(*range(max(0, number - kept), number), number)
    gateways = Gateways(names=("g",), reports=reports, now=reports[-1].received)
    return advance(state, scope=SCOPE, gateways=gateways, elapsed_seconds=60.0)


@pytest.mark.parametrize("kept", [0, 30], ids=["reports are forgotten", "reports are remembered"])
def test_starts_of_gateways_that_have_ended_take_no_place_and_stay_counted(kept: int) -> None:
    """One that is killed again and again, within a step that waits for days: a ConfigMap holds 1 MiB."""
    state, sizes = AnalysisState(key=SCOPE.key), []
    for number in range(200):
        state = after_start(number, kept=kept, state=state)
        sizes.append(len(json.dumps(state.to_dict())))
        state = state_from_dict(json.loads(json.dumps(state.to_dict())))
    assert dict(state.arm_ledgers)["default/new"].total == (2000, 0, 0, 200)
    assert dict(state.pair_ledgers)["quality/Probe"].total == (800, 0, 0)
    assert sizes[-1] < sizes[kept] + 200 * len('"g/0123456789abcdef", '), "a name of each, and no counts"


def test_an_ended_start_that_is_heard_of_late_counts_once() -> None:
    state = AnalysisState(key=SCOPE.key)
    for number in range(3):
        state = after_start(number, kept=0, state=state)
    late = replace(starts(0)[0], received=NOW + timedelta(minutes=3))
    gateways = Gateways(names=("g",), reports=(late, *starts(3)), now=NOW + timedelta(minutes=3))
    state = advance(state, scope=SCOPE, gateways=gateways, elapsed_seconds=60.0)
    assert dict(state.arm_ledgers)["default/new"].total[0] == 40


def test_a_gateway_whose_pod_is_not_seen_yet_has_not_ended() -> None:
    """Its report may be faster than its kubelet's."""
    state = after(report(gateway="young", clients=(10, 0)), names=())
    assert row(after(report(gateway="young", clients=(30, 0)), names=("young",), state=state))[1] == 30


def of_epochs(*arms: tuple[int, int, int]) -> Report:
    """A gateway's report: epoch, requests and bad answers of the candidate."""
    found = [ArmCounts(epoch=epoch, rule="default", variant="new", requests=n, bad=bad) for epoch, n, bad in arms]
    said = Observations(endpoint="e", gateway="g", boot_id="b", acknowledged_epoch=2, arms=found)
    return Report(observations=said, received=NOW)


def test_the_epochs_of_a_part_that_an_older_operator_began_count_once() -> None:
    """It kept the sum of all epochs, and nothing of each."""
    before = replace(after(of_epochs((1, 200, 20))), epochs=())
    state = after(of_epochs((1, 100, 10), (2, 100, 10)), state=before)
    assert dict(state.arm_ledgers)["default/new"].total == (200, 0, 0, 20)
    assert dict(after(of_epochs((1, 100, 10), (2, 130, 11)), state=state).arm_ledgers)["default/new"].total[0] == 230


def test_a_late_vote_about_an_old_epoch_makes_no_request_more() -> None:
    state = after(of_epochs((1, 100, 0), (2, 10, 0)), state=after(of_epochs((1, 100, 0))))
    state = after(of_epochs((1, 100, 5), (2, 10, 0)), state=state)
    state = after(of_epochs((1, 100, 5), (2, 30, 0)), state=state)
    assert dict(state.arm_ledgers)["default/new"].total == (130, 0, 0, 5)


def test_a_guard_calls_no_share_of_changed_answers_a_rate() -> None:
    """Held-out prompts are asked again and again there; what counts of each round is what has changed."""
    guard = replace(SCOPE, part="Guard", guard_seconds=60.0, reference={"quality": 0.2})
    probes = PAIRS.model_copy(update={"source": "Probe"})
    assert shown(guard, pairs=(probes,)) == (None, 0.1)
