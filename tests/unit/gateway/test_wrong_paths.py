"""A client that asks at a wrong path is told the right ones."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from finetune_gateway import application


def said(answer: web.Response) -> Any:
    assert isinstance(answer.body, bytes)
    return json.loads(answer.body)["error"]["message"]


def test_a_path_that_does_not_exist() -> None:
    answer = application._refused_by_router(make_mocked_request("POST", "/chat/completions"), web.HTTPNotFound())
    assert answer.status == 404
    assert said(answer) == (
        "there is no such path here; use"
        " /v1/chat/completions, /v1/completions, /v1/classify, /v1/models or /v1/feedback"
    )


def test_a_path_of_another_task() -> None:
    answer = application._not_offered("/v1/chat/completions", task="SequenceClassification")
    assert answer.status == 404
    assert said(answer) == (
        "/v1/chat/completions is not offered: this endpoint's task is SequenceClassification; use /v1/classify"
    )
