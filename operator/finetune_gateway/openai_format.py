"""PURE: the parts of OpenAI's wire format that the gateway understands; the rest passes through unread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class BadRequestError(Exception):
    """The request cannot be forwarded. `str()` says what is wrong and what is expected."""

    def __init__(self, message: str, *, status: int = 400, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """What routing and judging need to know of a body."""

    stream: bool
    body: bytes
    """As it is sent to a version: with the model's name, which clients may leave out. A server of several models would
    take one of its own choice."""
    limited: bool
    """Whether the client says how long an answer may be."""
    user: str | None
    json_expected: bool


def parse_request(*, body: bytes, model: str) -> ParsedRequest:
    """Read a request body. Raises BadRequestError for anything but a JSON object that names this endpoint's model."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError("the body is not valid JSON", code="invalid_json") from None
    if not isinstance(document, dict):
        raise BadRequestError("the body must be a JSON object", code="invalid_json")
    named = document.get("model")
    if named is not None and named != model:
        raise no_such_model(model=model)
    user = document.get("user")
    response_format = document.get("response_format")
    return ParsedRequest(
        stream=document.get("stream") is True,
        body=body if named is not None else with_model(document=document, model=model),
        limited=any(document.get(name) is not None for name in ("max_tokens", "max_completion_tokens")),
        user=user if isinstance(user, str) and user else None,
        json_expected=isinstance(response_format, dict)
        and response_format.get("type") in ("json_object", "json_schema"),
    )


def with_model(*, document: dict[str, Any], model: str) -> bytes:
    """A request with the name of the model that is meant."""
    return json.dumps({**document, "model": model}).encode()


def without_stream(*, body: bytes) -> bytes:
    """The same request as one that is answered at once: copies for a shadow are not streamed."""
    document = json.loads(body)
    document.pop("stream", None)
    document.pop("stream_options", None)
    return json.dumps(document).encode()


def read_answer(*, body: bytes) -> tuple[str | None, str | None, str | None]:
    """Text (or label), finish_reason and fault of an answer that came at once. No text and no fault: a tool call."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None, None, "the answer is not JSON"
    error = error_message(document)
    if error is not None or not isinstance(document, dict):
        return None, None, f"it says: {error}" if error is not None else "the answer is not a JSON object"
    if isinstance(document.get("label"), str):
        return str(document["label"]), None, None
    if not document.get("choices") and not document.get("data"):
        return None, None, "the answer holds nothing"
    return *first_choice(document, key="message"), None


def first_choice(document: Any, *, key: str) -> tuple[str | None, str | None]:
    """Text and finish_reason of an answer's first choice, or of a streamed part of it."""
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None, None
    message, finish = choices[0].get(key), choices[0].get("finish_reason")
    content = message.get("content") if isinstance(message, dict) else choices[0].get("text")
    return content if isinstance(content, str) else None, finish if isinstance(finish, str) else None


def error_message(document: Any) -> str | None:
    """What an error says that came in place of an answer; None: it is none."""
    error = document.get("error") if isinstance(document, dict) else None
    if not error:
        return None
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


def no_such_model(*, model: str) -> BadRequestError:
    """The error for any name but the endpoint's."""
    words = f"this endpoint serves the model {model!r} only; set `model` to it or leave it out"
    return BadRequestError(words, status=404, code="model_not_found", param="model")


_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    404: "unknown_url",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_encoding",
    429: "rate_limit_exceeded",
    502: "no_answer",
    503: "service_unavailable",
    504: "timeout",
}


def error_body(*, status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients understand it (https://platform.openai.com/docs/guides/error-codes)."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}
