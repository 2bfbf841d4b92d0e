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
        user=user if isinstance(user, str) and user else None,
        json_expected=isinstance(response_format, dict)
        and response_format.get("type") in ("json_object", "json_schema"),
    )


def without_stream(*, body: bytes) -> bytes:
    """The same request as one that is answered at once: copies for a shadow are not streamed."""
    document = json.loads(body)
    document.pop("stream", None)
    document.pop("stream_options", None)
    return json.dumps(document).encode()


def answer_text(*, body: bytes) -> str | None:
    """The generated text (or the label) of an answer, streamed or not; None where it cannot be read."""
    if body.startswith(b"data:") or b"\ndata:" in body[:256]:
        return _streamed_text(body)
    try:
        document = json.loads(body)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    if isinstance(document.get("label"), str):
        return str(document["label"])
    return _first_text(document.get("choices"), key="message")


def _streamed_text(body: bytes) -> str | None:
    parts: list[str] = []
    finished = False
    for line in body.split(b"\n"):
        payload = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if payload == b"[DONE]":
            finished = True
        elif payload:
            try:
                parts.append(_first_text(json.loads(payload).get("choices"), key="delta") or "")
            except (ValueError, AttributeError):
                return None
    return "".join(parts) if finished else None


def _first_text(choices: Any, *, key: str) -> str | None:
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    message = choices[0].get(key)
    content = message.get("content") if isinstance(message, dict) else choices[0].get("text")
    return content if isinstance(content, str) else None


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
