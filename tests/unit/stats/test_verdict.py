"""The verdict's table: what passes, fails and stays open."""

from __future__ import annotations

import dataclasses

import pytest

from finetune_stats.comparison import Range
from finetune_stats.result import Inconclusive, Method, MetricKind, Orientation, PairedResult
from finetune_stats.verdict import MetricRow, Verdict, holm, judge, required_margin


def result(
    metric: str = "em",
    *,
    low: float | None = -0.005,
    p_loss: float = 0.9,
    margin: float = 0.01,
    inconclusive: Inconclusive | None = None,
    p_outside: float | None = None,
    candidate: tuple[float, float] = (0.78, 0.82),
) -> PairedResult:
    return PairedResult(
        metric=metric,
        kind=MetricKind.PROPORTION,
        orientation=Orientation.HIGHER_IS_BETTER,
        method=Method.TANGO,
        candidate=sum(candidate) / 2,
        baseline=0.79,
        difference=0.01,
        low=low,
        high=0.02,
        candidate_low=candidate[0],
        candidate_high=candidate[1],
        n=1000,
        groups=1000,
        alpha=0.025,
        margin=margin,
        p_loss=p_loss,
        p_outside=p_outside,
        inconclusive=inconclusive,
        reason="12 groups" if inconclusive else "",
        power=0.6,
        needed_n=1700,
    )


GOOD = MetricRow(result=result("good"))
OPEN = MetricRow(result=result("open", low=-0.02, p_loss=0.4))
BAD = MetricRow(result=result("bad", low=-0.09, p_loss=0.001))
FEW = MetricRow(result=result("few", inconclusive=Inconclusive.TOO_FEW_GROUPS))
BAD_REPORT = MetricRow(result=result("shown", low=-0.09, p_loss=1e-9), gating=False)


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([GOOD], Verdict.PASS),
        ([GOOD, GOOD], Verdict.PASS),
        ([GOOD, OPEN], Verdict.INCONCLUSIVE),
        ([GOOD, FEW], Verdict.INCONCLUSIVE),
        ([GOOD, BAD], Verdict.FAIL),
        ([OPEN, FEW, BAD], Verdict.FAIL),
        ([GOOD, BAD_REPORT], Verdict.PASS),
    ],
)
def test_overall(rows: list[MetricRow], verdict: Verdict) -> None:
    overall = judge(rows)
    assert overall.verdict is verdict
    assert [metric.metric for metric in overall.metrics] == [row.result.metric for row in rows]


def test_reasons_name_metric_numbers_and_way_out() -> None:
    reason = judge([GOOD, OPEN]).reason
    assert (
        reason
        == "open: the difference +0.01 [-0.02, +0.02] may be below -0.01; about 1700 examples would do (now 1000)"
    )
    assert judge([FEW]).reason == "few: 12 groups"


def test_the_bound_on_the_floor_is_not_above_it() -> None:
    assert judge([MetricRow(result=result(low=-0.01))]).verdict is Verdict.INCONCLUSIVE


def test_a_demanded_improvement_moves_the_floor() -> None:
    assert judge([MetricRow(result=result(low=0.005, margin=-0.004))]).verdict is Verdict.PASS
    assert judge([MetricRow(result=result(low=0.003, margin=-0.004))]).verdict is Verdict.INCONCLUSIVE


def test_holm_makes_one_of_many_harder_to_prove() -> None:
    suspicious = MetricRow(result=result("x", low=-0.05, p_loss=0.02))
    assert judge([suspicious]).verdict is Verdict.FAIL
    assert judge([suspicious, *[GOOD] * 4]).verdict is Verdict.INCONCLUSIVE


def test_reported_and_inconclusive_rows_do_not_dilute_the_proof() -> None:
    suspicious = MetricRow(result=result("x", low=-0.05, p_loss=0.02))
    assert judge([suspicious, FEW, BAD_REPORT]).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("candidate", "p_outside", "verdict"),
    [
        ((0.78, 0.82), 1.0, Verdict.PASS),
        ((0.68, 0.76), 0.4, Verdict.INCONCLUSIVE),
        ((0.60, 0.66), 0.001, Verdict.FAIL),
    ],
)
def test_threshold_range(candidate: tuple[float, float], p_outside: float, verdict: Verdict) -> None:
    row = MetricRow(result=result(candidate=candidate, p_outside=p_outside), threshold=Range(minimum=0.7))
    assert judge([row]).verdict is verdict


def test_a_threshold_that_was_not_computed_is_refused() -> None:
    with pytest.raises(ValueError, match="not told of the threshold"):
        MetricRow(result=result(), threshold=Range(minimum=0.7))


def test_nothing_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric is judged"):
        judge([BAD_REPORT])


@pytest.mark.parametrize(
    ("p_values", "rejected"),
    [
        ([], ()),
        ([0.01, 0.04, 0.03, 0.005], (True, False, False, True)),
        ([0.04, 0.01, 0.02], (True, True, True)),
        ([0.06, 0.001], (False, True)),
    ],
)
def test_holm(p_values: list[float], rejected: tuple[bool, ...]) -> None:
    """Second row: the classic example, with alpha 0.05 only 0.005 and 0.01 pass 0.05/4 and 0.05/3."""
    assert holm(p_values=p_values, alpha=0.05) == rejected


@pytest.mark.parametrize(
    ("max_regression", "min_improvement", "margin"),
    [(0.01, None, 0.01), (None, 0.02, -0.02), (0.01, 0.02, -0.02), (None, None, 0.0), (None, 0.0, 0.0)],
)
def test_required_margin(max_regression: float | None, min_improvement: float | None, margin: float) -> None:
    assert required_margin(max_regression=max_regression, min_improvement=min_improvement) == pytest.approx(margin)


@pytest.mark.parametrize(
    ("candidate", "p_outside", "verdict"),
    [
        ((0.78, 0.82), 1.0, Verdict.PASS),
        ((0.60, 0.72), 0.3, Verdict.INCONCLUSIVE),
        ((0.50, 0.60), 0.001, Verdict.FAIL),
    ],
)
def test_a_threshold_alone_does_not_judge_the_difference(
    candidate: tuple[float, float], p_outside: float, verdict: Verdict
) -> None:
    worse = result(low=-0.09, p_loss=1e-9, candidate=candidate, p_outside=p_outside)
    row = MetricRow(result=worse, threshold=Range(minimum=0.7), compared=False)
    assert judge([row]).verdict is verdict


def test_a_threshold_alone_needs_no_examples_for_the_difference() -> None:
    inside = MetricRow(result=result(p_outside=1.0), threshold=Range(minimum=0.7), compared=False)
    assert judge([inside]).needed_n is None
    assert judge([inside, GOOD]).needed_n == judge([GOOD]).needed_n


def test_a_row_without_any_demand_is_refused() -> None:
    with pytest.raises(ValueError, match="neither"):
        MetricRow(result=result(), compared=False)


def test_what_all_metrics_need_together() -> None:
    alone, together = judge([GOOD]).needed_n, judge([GOOD, OPEN]).needed_n
    assert alone == 1700
    assert together is not None and together > alone
    unknown = MetricRow(result=dataclasses.replace(result("x"), needed_n=None))
    assert judge([GOOD, unknown]).needed_n is None
