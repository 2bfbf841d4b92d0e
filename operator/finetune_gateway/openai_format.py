"""PURE: the parts of OpenAI's wire format that the gateway understands; the rest passes through unread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class BadRequestError(Exception):
    """The request cannot be forwarded. `str()` says what is wrong and what is expected."""


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
        raise BadRequestError("the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise BadRequestError("the body must be a JSON object")
    named = document.get("model")
    if named is not None and named != model:
        raise BadRequestError(f"this endpoint serves the model {model!r} only; set `model` to it or leave it out")
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


def error_body(*, status: int, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients understand it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
