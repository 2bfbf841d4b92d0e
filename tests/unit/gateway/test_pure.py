"""Routing, breaker, quality and request ids: decisions without I/O."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.routes import Breaker, Routes
from finetune_gateway.breaker import BreakerState
from finetune_gateway.openai_format import (
    BadRequestError,
    error_in,
    parse_request,
    read_answer,
    text_of,
    without_stream,
)
from finetune_gateway.quality import fault_of
from finetune_gateway.routing import choose, user_position


def routes(**changes: Any) -> Routes:
    document: dict[str, Any] = {
        "epoch": 1,
        "endpoint": "router",
        "model": "router",
        "task": "Chat",
        "variants": {
            "new": {"name": "router-2", "url": "http://new", "ready": True},
            "old": {"name": "router-1", "url": "http://old", "ready": True},
        },
        "rules": [
            {"name": "internal", "match": {"x-team": "ml"}, "weights": {"new": 100}, "fallback": "old", "breaker": {}},
            {"name": "everybody", "weights": {"new": 5, "old": 95}, "fallback": "old", "breaker": {}},
        ],
    }
    return Routes.model_validate(document | changes)


def closed(rule: str, variant: str) -> bool:
    return False


def test_first_matching_rule_decides() -> None:
    choice = choose(routes=routes(), headers={"x-team": "ml"}, position=99.0, is_open=closed)
    assert choice is not None
    assert (choice.rule, choice.variant, choice.fallback) == ("internal", "new", "old")


@pytest.mark.parametrize(("position", "variant"), [(0.0, "new"), (4.99, "new"), (5.0, "old"), (99.99, "old")])
def test_users_are_divided_by_position(position: float, variant: str) -> None:
    choice = choose(routes=routes(), headers={}, position=position, is_open=closed)
    assert choice is not None
    assert choice.variant == variant


def test_an_open_breaker_sends_everybody_to_the_fallback() -> None:
    choice = choose(routes=routes(), headers={}, position=0.0, is_open=lambda rule, variant: variant == "new")
    assert choice is not None
    assert (choice.variant, choice.fallback) == ("old", None)


@given(st.text(min_size=1), st.floats(1, 49))
def test_a_growing_share_only_adds_users(user: str, percent: float) -> None:
    def variant(share: float) -> str:
        rules = [{"name": "all", "weights": {"new": share, "old": 100 - share}, "fallback": "old"}]
        position = user_position(salt="s", user=user)
        choice = choose(routes=routes(rules=rules), headers={}, position=position, is_open=closed)
        assert choice is not None
        return choice.variant

    if variant(percent) == "new":
        assert variant(percent * 2) == "new"


def test_positions_are_uniform_and_change_with_the_salt() -> None:
    places = [user_position(salt="a", user=f"user-{number}") for number in range(4000)]
    counts = [sum(1 for place in places if decile * 10 <= place < decile * 10 + 10) for decile in range(10)]
    assert all(320 <= count <= 480 for count in counts), counts
    assert user_position(salt="a", user="user-1") != user_position(salt="b", user="user-1")


def test_routes_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 90, not 100"):
        routes(rules=[{"name": "all", "weights": {"old": 90}}])
    with pytest.raises(ValueError, match="not among the variants"):
        routes(rules=[{"name": "all", "weights": {"gone": 100}}])
    with pytest.raises(ValueError, match="match everybody"):
        routes(rules=[{"name": "some", "match": {"a": "b"}, "weights": {"old": 100}}])


def test_breaker_opens_at_failures_and_ratio_and_stays_open() -> None:
    state = BreakerState(settings=Breaker(failures=3, failure_ratio=0.5, window_seconds=5))
    answers = [(0.0, False), (0.1, True), (0.2, True), (0.3, True), (0.4, True)]
    opened = [state.record(now=now, failed=failed, what="status 500") for now, failed in answers]
    assert opened == [False, False, False, True, False]
    assert "3 of 4 requests failed within 5 s" in str(state.opened)


def test_breaker_forgets_what_left_its_window() -> None:
    state = BreakerState(settings=Breaker(failures=2, failure_ratio=0.5, window_seconds=1))
    assert not state.record(now=0.0, failed=True, what="x")
    assert not state.record(now=2.0, failed=True, what="x")
    assert state.record(now=2.5, failed=True, what="x")


@pytest.mark.parametrize(
    ("text", "json_expected", "fault"),
    [
        ("movies", False, None),
        ("   ", False, "empty"),
        ("I'm sorry, but I can't help with that.", False, "refusal"),
        ("I cannot recommend this film enough", False, "refusal"),
        ("Sorry to hear that! Try turning it off and on.", False, None),
        ("the cat " * 40, False, "repetition"),
        ("It began well. " + "and so on and so forth " * 12, False, "repetition"),
        ("!" * 40, False, "repetition"),
        (
            "a normal answer of some length that says quite different things in each of its many parts, one by one",
            False,
            None,
        ),
        ('{"a": 1', True, "broken_json"),
        ('{"a": ' * 20_000, True, "broken_json"),
        ('{"a": 1}', True, None),
    ],
)
def test_faults(text: str, json_expected: bool, fault: str | None) -> None:
    assert fault_of(text=text, json_expected=json_expected) == fault


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b'{"model": "gpt-4"}', "'router' only"),
        (b'{"stream": "true"}', "`stream` must be true or false"),
        (b'{"stream": 1}', "`stream` must be true or false"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"tools": ' + b"[" * 400 + b"]" * 400 + b"}", "not valid JSON"),  # can be read, but not written
    ],
)
def test_bad_requests_are_named(body: bytes, problem: str) -> None:
    with pytest.raises(BadRequestError, match=problem):
        parse_request(body=body, model="router")


def test_request_is_understood() -> None:
    body = b'{"model": "router", "stream": true, "user": "u1", "response_format": {"type": "json_object"}}'
    parsed = parse_request(body=body, model="router")
    assert (parsed.stream, parsed.user, parsed.json_expected) == (True, "u1", True)
    assert b"stream" not in without_stream(body=body)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"error": {"message": "too long", "code": 400}}, "too long"),
        ({"error": "too long"}, "too long"),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "param": None, "code": 400}, "too long"),
        ({"detail": "too long"}, "too long"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too long"}, {"msg": "too many"}]}, "too long; too many"),
        ({"message": 5}, "status 400 without a reason"),
        ({}, "status 400 without a reason"),
    ],
)
def test_why_a_version_refuses_is_handed_on(document: dict[str, Any], words: str) -> None:
    assert error_in(document, status=400)["error"] == {
        "message": words,
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_request",
    }


def test_texts_of_answers() -> None:
    assert text_of({"choices": [{"message": {"content": "hi"}}]}) == ("hi", None)
    assert text_of({"label": "movies", "scores": {}}) == ("movies", None)
    assert text_of(read_answer(body=b"<html>")[0]) == (None, None)
