"""What an answer is worth, streamed or not, and what a client has of one that breaks off."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_gateway.answers import Answer, measures, streamed, whole
from finetune_gateway.event_stream import HEARTBEAT, EventStream
from finetune_gateway.openai_format import Sender, parse_request
from finetune_gateway.quality import fault_of_answer


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"message": "CUDA out of memory", "code": 500}}\n\n'
GOOD = event("he") + event("y", "stop") + DONE


def with_usage(stream: bytes) -> bytes:
    """As it comes to clients that ask for usage: null in every event, and an event of its own at the end."""
    last = b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
    body, done, rest = stream.replace(b'"choices"', b'"usage": null, "choices"').partition(DONE)
    return body + last + done + rest


SENDER = Sender(answer_id="an-id", model="router", created=7)


def read(body: bytes) -> tuple[EventStream, bytes]:
    events = EventStream(own=SENDER.own)
    return events, events.feed(body) + events.end()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (GOOD, None),
        (GOOD.replace(b"\n", b"\r\n"), None),
        (GOOD.replace(b"\n", b"\r"), None),
        (b"\xef\xbb\xbf" + GOOD, None),
        (b"retry: 3000\n\n" + GOOD, None),
        (DONE, "the answer holds nothing"),
        (event("he") + event("", "abort") + DONE, "it ended with finish_reason abort"),
        (event("hey") + DONE, None),
        (event("hey", "stop"), None),
        (event("hey", "stop") + b"data: [DONE]", None),
        (b": wait\n\n" + GOOD, None),
        (with_usage(GOOD), None),
        (with_usage(event("he") + event("y", "stop")), None),
        (with_usage(event("he")), "it ended without [DONE] and finish_reason"),
        (event("he") + ERROR, "it says: CUDA out of memory"),
        (event("he") + ERROR + DONE, "it says: CUDA out of memory"),
        (event("he") + b'event: error\ndata: {"error": "no"}\n\n' + DONE, "it says: no"),
        (event("he") + event("y"), "it ended without [DONE] and finish_reason"),
        (b"", "it ended without [DONE] and finish_reason"),
        (event("he") + event("y")[:30], "it ended in the middle of an event"),
        (event("he") + b"data: {\n\n" + DONE, "an event is not JSON"),
    ],
)
def test_what_is_wrong_with_a_stream(body: bytes, fault: str | None) -> None:
    assert read(body)[0].fault == fault


def documents(passed: bytes) -> list[dict[str, Any]]:
    """What a client reads of whole events that end with [DONE]."""
    *events, done, rest = passed.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(each.removeprefix(b"data: ")) for each in events]


def test_events_keep_what_was_generated_and_usage() -> None:
    events, passed = read(with_usage(GOOD))
    one, other, last = documents(passed)
    assert [each["choices"][0]["delta"]["content"] for each in (one, other)] == ["he", "y"]
    assert (one["usage"], last["choices"], last["usage"]) == (None, [], {"completion_tokens": 2})
    assert (events.text, events.finish) == ("hey", "stop")


VLLM = {
    "id": "chatcmpl-8b2b91720edd4372b0579e89255b4828",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "/models/v2",
    "system_fingerprint": "vllm-0.22.1-tp8-ep-d2102000",
    "prompt_token_ids": None,
    "choices": [{"index": 0, "delta": {"content": "hey"}, "finish_reason": "stop"}],
}


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\r"])
def test_nothing_but_what_was_generated_tells_the_version(separator: str) -> None:
    stream = f"event: v2\nid: 5\nretry: 3\n: v2\ndata: {json.dumps(VLLM)}\n\ndata:[DONE]\n\n"
    (document,) = documents(read(stream.replace("\n", separator).encode())[1].replace(HEARTBEAT, b""))
    kept = {name: VLLM[name] for name in ("object", "choices")}
    assert document == {"id": "an-id", "created": 7, "model": "router", **kept}
    assert SENDER.own({"object": "list", "model": "v2", "label": "a", "data": [], "host": "v2"}) == {
        "model": "router",
        "object": "list",
        "label": "a",
        "data": [],
    }


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(0, len(GOOD)), max_size=8))
def test_however_it_is_cut_it_is_the_same_answer(separator: bytes, cuts: list[int]) -> None:
    stream = GOOD.replace(b"\n", separator).replace(b'"he"', '"h\N{SNOWMAN}"'.encode())
    events, edges = EventStream(own=SENDER.own), sorted({0, len(stream), *cuts})
    passed = b"".join(events.feed(stream[one:other]) for one, other in pairwise(edges)) + events.end()
    assert (passed, events.text, events.fault) == (read(stream)[1], read(stream)[0].text, None)


@given(st.lists(st.integers(0, len(GOOD)), max_size=8), st.integers(0, len(GOOD)))
def test_however_it_breaks_off_a_client_has_whole_events(cuts: list[int], end: int) -> None:
    events, edges = EventStream(own=SENDER.own), sorted({0, end, *(cut for cut in cuts if cut < end)})
    passed = b"".join(events.feed(GOOD[one:other]) for one, other in pairwise(edges)) + events.end()
    assert passed == b"" or passed.endswith(b"\n\n"), "another event may follow"
    assert all(
        part.strip() == b"[DONE]" or json.loads(part)
        for part in passed.replace(b"data: ", b"").split(b"\n\n")
        if part.strip()
    )
    assert "hey".startswith(events.text or "")


def test_comments_are_handed_on_at_once_and_events_without_end_are_not_kept() -> None:
    events = EventStream(own=SENDER.own)
    assert events.feed(b": wait\n") == HEARTBEAT
    for _ in range(50):
        assert events.feed(b"data: " + b"x" * (1 << 16) + b"\n") == b""
    assert events.fault == "an event is longer than 1048576 characters"


def second(text: str, finish: str | None = None) -> bytes:
    """A part of another choice."""
    return event(text, finish).replace(b'"index": 0', b'"index": 1')


def test_of_several_choices_the_first_is_judged() -> None:
    events, _ = read(event("he") + second("NO", "length") + event("y", "stop") + DONE)
    assert (events.text, events.finish, events.fault) == ("hey", "stop", None)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (second("yes", "stop") + event("hey", "stop"), None),
        (second("ye") + event("hey", "stop"), "it ended without [DONE] and finish_reason"),
        (event("hey", "stop") + second("ye"), "it ended without [DONE] and finish_reason"),
        (event("hey", "stop") + second("ye", "abort") + DONE, "it ended with finish_reason abort"),
    ],
)
def test_a_choice_that_breaks_off_is_a_failure_whichever_it_is(body: bytes, fault: str | None) -> None:
    assert read(body)[0].fault == fault


@pytest.mark.parametrize(
    ("status", "body", "failed", "refused"),
    [
        (200, b'{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}', False, False),
        (200, b'{"choices": [{"message": {"content": null, "tool_calls": [{}]}}]}', False, False),
        (200, b'{"choices": [{"message": {"content": "", "tool_calls": [{}]}}]}', False, False),
        (200, b'{"label": "movies"}', False, False),
        (200, b'{"object": "list", "data": [{"label": "movies"}]}', False, False),
        (200, b'{"error": {"message": "no"}}', True, False),
        (200, b'{"choices": [{"message": {"content": "h"}, "finish_reason": "abort"}]}', True, False),
        (200, b'{"choices": [{"text": "h", "finish_reason": "stop"}, {"finish_reason": "abort"}]}', True, False),
        (204, b"", True, False),
        (307, b"", True, False),
        (200, b"{}", True, False),
        (200, b"<html>", True, False),
        (400, b"{}", False, True),
        (404, b"{}", False, True),
        (429, b"{}", True, False),
        (503, b"{}", True, False),
    ],
)
def test_what_has_become_of_a_request(status: int, body: bytes, failed: bool, refused: bool) -> None:
    answer = whole(status=status, body=body, seconds=0.1)
    assert (answer.failed, answer.refused) == (failed, refused)
    assert fault_of_answer(answer, json_expected=False, limited=False) is None, "a tool call is no empty answer"


def test_a_call_of_a_tool_is_no_empty_answer_in_a_stream_either() -> None:
    """Of a pair stable's answer may be streamed, while the candidate's never is: both are judged alike."""
    said = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n'
    call = b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]}\n\n'
    end = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}\n\n'
    called = streamed(events=read(said + call + end + DONE)[0], seconds=0.1)
    empty = streamed(events=read(said + end + DONE)[0], seconds=0.1)
    assert fault_of_answer(called, json_expected=True, limited=True) is None
    assert fault_of_answer(empty, json_expected=False, limited=True) == "empty"


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_an_answer_of_nothing_but_thoughts_is_empty_streamed_or_not(content: dict[str, Any]) -> None:
    """vLLM says null where it sends no part of a stream: stable's streamed answers were bad, the same in copies not."""
    message = {"role": "assistant", "reasoning_content": "hm", **content}
    ends = {"index": 0, "finish_reason": "length"}
    stream = b"".join(
        b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode()
        for choice in ({"index": 0, "delta": message}, {**ends, "delta": {}})
    )
    at_once = whole(status=200, body=json.dumps({"choices": [{**ends, "message": message}]}).encode(), seconds=0.1)
    for answer in (streamed(events=read(stream + DONE)[0], seconds=0.1), at_once):
        assert fault_of_answer(answer, json_expected=False, limited=True) == "empty"


def test_an_answer_cut_off_by_another_limit_than_the_client_s_is_a_bad_one() -> None:
    answer = Answer(status=200, text="and then", finish="length")
    assert fault_of_answer(answer, json_expected=False, limited=False) == "cut_off"
    assert fault_of_answer(answer, json_expected=False, limited=True) is None


ANSWERS = st.builds(
    Answer,
    status=st.sampled_from([0, 200, 200, 200, 400, 404, 429, 500]),
    text=st.sampled_from(["good", "", None]),
    seconds=st.floats(0, 10),
    fault=st.sampled_from([None, None, "broken"]),
)


@given(ANSWERS, ANSWERS)
def test_pairs_are_measured_alike_whichever_version_is_the_candidate(one: Answer, other: Answer) -> None:
    def bad(answer: Answer) -> bool:
        return answer.failed or fault_of_answer(answer, json_expected=False, limited=False) is not None

    there = measures(one, other, bad=bad, latency_limit=5.0)
    back = measures(other, one, bad=bad, latency_limit=5.0)
    assert {name: pair[::-1] for name, pair in back.items()} == there
    if one == other:
        assert all(first == second for first, second in there.values())


@pytest.mark.parametrize(
    ("candidate", "stable", "found"),
    [(400, 200, (True, False)), (200, 404, (False, True)), (400, 422, (False, False)), (500, 400, (True, False))],
)
def test_a_refusal_that_the_other_version_did_not_give_is_a_failure(
    candidate: int, stable: int, found: tuple[bool, bool]
) -> None:
    pair = [Answer(status=status, text="hi") for status in (candidate, stable)]
    assert measures(*pair, bad=lambda _: False, latency_limit=None)["error_rate"] == found


@pytest.mark.parametrize("body", [{"messages": []}, {"model": None, "messages": []}, {"model": "router"}])
def test_a_version_is_always_told_which_model_is_meant(body: dict[str, object]) -> None:
    sent = json.loads(parse_request(body=json.dumps(body).encode(), model="router").body)
    assert sent == {**body, "model": "router"}
