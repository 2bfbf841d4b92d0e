"""Fields of requests: each is served, ignored as documented, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_trainer.serving.wire import (
    IGNORED,
    IGNORED_OF_MESSAGES,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    RequestError,
)

ROOT = Path(__file__).resolve().parents[3]
HELLO = {"role": "user", "content": "hello"}


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [HELLO], **fields})


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [{}]},
        {"top_k": 5},
        {"repetition_penalty": 1.1},
        {"whatever": "x"},
        {"best_of": 2},
        {"tool_choice": "required"},
        {"messages": [{**HELLO, "weight": 0.5}]},
        {"messages": [{**HELLO, "reasoning_content": "hm"}]},
    ],
)
def test_what_is_not_served_is_refused_by_name(field: dict[str, Any]) -> None:
    ((name, value),) = field.items()
    word = name if name != "messages" else next(key for key in value[0] if key not in HELLO)
    with pytest.raises(ValidationError, match=f"{word}: not supported"):
        chat(**field)


def test_what_asks_for_nothing_is_taken() -> None:
    chat(tools=None, logprobs=False, top_k=None, tool_choice="auto", best_of=1, modalities=["text"])


def test_what_is_ignored_is_documented() -> None:
    chat(**dict.fromkeys(IGNORED, "anything"))
    chat(messages=[{**HELLO, **dict.fromkeys(IGNORED_OF_MESSAGES, "anything")}])
    page = (ROOT / "docs" / "serving.md").read_text()
    for name in (*IGNORED, *IGNORED_OF_MESSAGES):
        assert f"`{name}`" in page


def test_an_assistant_may_have_called_tools_and_said_nothing() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"up": 1}'}}
    turn = ChatMessage.model_validate({"role": "assistant", "content": None, "tool_calls": [call]}).to_turn()
    assert (turn["content"], turn["tool_calls"][0]["function"]["arguments"]) == ("", {"up": 1})
    answer = ChatMessage.model_validate({"role": "tool", "content": "7", "tool_call_id": "1"}).to_turn()
    assert answer == {"role": "tool", "content": "7", "tool_call_id": "1"}
    for empty in ({"role": "user", "content": None}, {"role": "assistant"}):
        with pytest.raises(ValidationError, match="content may be null only beside"):
            ChatMessage.model_validate(empty)


def test_several_prompts_are_not_streamed() -> None:
    assert CompletionRequest.model_validate({"prompt": ["a"], "stream": True}).texts == ["a"]
    with pytest.raises(ValidationError, match="send one prompt"):
        CompletionRequest.model_validate({"prompt": ["a", "b"], "stream": True})


def test_when_to_come_back_is_a_whole_number_that_clients_keep_to() -> None:
    pauses = [RequestError("busy", status=429, again_after=seconds).headers for seconds in (0.0, 1.2, 4000.0)]
    assert pauses == [{"Retry-After": "1"}, {"Retry-After": "2"}, {"Retry-After": "60"}]
    assert RequestError("wrong").headers == {}
