"""From rows to a verdict, and from a verdict to what happens."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from finetune_api.shared_fields import MetricResult, Verdict
from finetune_operator.gates.policy import Comparison, judge
from finetune_operator.gates.verdict import overall_verdict


def row(metric: str, verdict: Verdict | None, *, report: bool = False, **parts: Any) -> MetricResult:
    return MetricResult(metric=metric, verdict=verdict, report=report, candidate=0.8, baseline=0.7, **parts)


@pytest.mark.parametrize(
    ("rows", "reported", "expected"),
    [
        ([row("a", "Pass"), row("b", "Pass")], "Pass", "Pass"),
        ([row("a", "Pass"), row("b", "Inconclusive")], "Pass", "Inconclusive"),
        ([row("a", "Inconclusive"), row("b", "Fail")], "Pass", "Fail"),
        ([row("a", "Pass"), row("b", None)], "Pass", "Inconclusive"),
        ([row("a", "Pass"), row("b", "Fail", report=True)], "Pass", "Pass"),
        # Rows may be missing from a short message; the container's own verdict can only make it worse.
        ([row("a", "Pass")], "Fail", "Fail"),
        ([row("a", "Pass")], "Inconclusive", "Inconclusive"),
        ([row("a", "Fail")], "Pass", "Fail"),
        # Nothing judged, nothing proven.
        ([], "Pass", "Inconclusive"),
        ([row("a", "Pass", report=True)], "Pass", "Inconclusive"),
        ([], "Fail", "Fail"),
    ],
)
def test_overall_verdict(rows: list[MetricResult], reported: Verdict, expected: Verdict) -> None:
    assert overall_verdict(rows=rows, reported=reported) == expected


@pytest.mark.parametrize(
    ("verdict", "policy", "accepted", "reason"),
    [
        ("Pass", "Hold", True, "Proven"),
        ("Pass", "Reject", True, "Proven"),
        ("Fail", "Hold", False, "GateFailed"),
        ("Fail", "Proceed", False, "GateFailed"),
        ("Inconclusive", "Hold", False, "Inconclusive"),
        ("Inconclusive", "Reject", False, "Inconclusive"),
        ("Inconclusive", "Proceed", True, "Inconclusive"),
    ],
)
def test_policy(verdict: Verdict, policy: Any, accepted: bool, reason: str) -> None:
    found = judge(compared(verdict, policy=policy))
    assert (found.accepted, found.reason) == (accepted, reason)


def compared(verdict: Verdict, *, policy: Any = "Hold", **parts: Any) -> Comparison:
    return Comparison(
        verdict=verdict,
        rows=[row("exact_match", verdict, reason="may be below -0.01", **parts)],
        examples=120,
        baseline="router-6",
        on_inconclusive=policy,
    )


def test_an_undecided_comparison_names_the_way_out() -> None:
    message = judge(compared("Inconclusive", needed_n=900)).message
    assert "exact_match: may be below -0.01" in message
    assert "About 900 held-out examples would decide" in message


def test_one_that_is_not_worse_but_gains_too_little_is_not_called_worse() -> None:
    assert (
        "gains less than is demanded over router-6: exact_match" in judge(compared("Fail", low=-0.1, high=0.05)).message
    )
    assert "worse than router-6 beyond the margin" in judge(compared("Fail", low=-0.2, high=-0.1)).message


def test_a_pass_shows_the_gain_and_its_interval() -> None:
    message = judge(compared("Pass", low=0.03, high=0.17)).message
    assert "exact_match 0.7 -> 0.8 [+0.03, +0.17]" in message
    assert "router-6" in message
    assert "120 held-out examples" in message


def test_held_and_given_up_are_not_the_same() -> None:
    assert [judge(compared("Inconclusive", policy=policy)).held for policy in ("Hold", "Reject", "Proceed")] == [
        True,
        False,
        False,
    ]
    assert not judge(compared("Fail", policy="Hold")).held
    assert "a person may approve it" in judge(compared("Inconclusive", policy="Hold")).message
    assert "it is given up" in judge(compared("Inconclusive", policy="Reject")).message


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (row("f1", None, report=True, low=-0.15, high=-0.05), "f1 0.7 -> 0.8 [-0.15, -0.05] (reported, not judged)"),
        (row("loss", None, report=True, better="Lower", low=0.1, high=0.3), "loss 0.7 -> 0.8 [+0.1, +0.3] (reported"),
        (row("recall", "Pass", low=-0.04, high=-0.01), "recall 0.7 -> 0.8 [-0.04, -0.01] (within what is allowed)"),
        (row("f1", None, report=True, low=-0.15, high=0.05), ""),
        (row("loss", None, report=True, better="Lower", low=-0.3, high=-0.1), ""),
        (row("f1", None, report=True), ""),
    ],
)
def test_a_pass_says_what_got_worse_beside_it(beside: MetricResult, words: str) -> None:
    passed = compared("Pass", low=0.03, high=0.17)
    message = judge(dataclasses.replace(passed, rows=[*passed.rows, beside])).message
    assert ("Worse beyond chance, all the same: " in message) == bool(words)
    assert words in message
