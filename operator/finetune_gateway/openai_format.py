"""PURE: the parts of OpenAI's wire format that the gateway understands; the rest passes through unread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn


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


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_json)
"""Python's own takes NaN and infinities, and would hand on what no other client can read."""


_DEEPEST = 128
"""Levels of a JSON document, as many as serde_json reads."""


def read_object(text: bytes | str) -> dict[str, Any] | None:
    """A JSON object; None for whatever else it is. Raises ValueError where it is no JSON."""
    decoded = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
    try:
        document = _DECODER.decode(decoded)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(document, dict):
        return None
    if decoded.count("[") + decoded.count("{") > _DEEPEST and _is_deeper(document):
        raise ValueError("it is nested too deep")
    return document


def _is_deeper(document: dict[str, Any]) -> bool:
    """Whether it is nested so deep that it could be read but not written."""
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def parse_request(*, body: bytes, model: str) -> ParsedRequest:
    """Read a request body. Raises BadRequestError for anything but a JSON object that names this endpoint's model."""
    try:
        document = read_object(body)
    except ValueError:
        raise BadRequestError("the body is not valid JSON", code="invalid_json") from None
    if document is None:
        raise BadRequestError("the body must be a JSON object", code="invalid_json")
    named = document.get("model")
    if named is not None and named != model:
        raise no_such_model(model=model)
    stream = document.get("stream")
    if not isinstance(stream, bool | None):  # vLLM reads "true" and 1 as true, and would be blamed for its stream
        raise BadRequestError("`stream` must be true or false", code="invalid_type", param="stream")
    user = document.get("user")
    response_format = document.get("response_format")
    return ParsedRequest(
        stream=bool(stream),
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


def read_answer(*, body: bytes) -> tuple[dict[str, Any], str | None]:
    """An answer that came at once, and its fault; {} where it is no JSON object."""
    try:
        document = read_object(body)
    except ValueError:
        return {}, "the answer is not JSON"
    if document is None:
        return {}, "the answer is not a JSON object"
    error = error_message(document)
    if error is not None:
        return document, f"it says: {error}"
    if not document.get("choices") and not document.get("data") and not isinstance(document.get("label"), str):
        return document, "the answer holds nothing"
    return document, next(filter(None, (fault_of_finish(end) for _, end in ends_of(document))), None)


def text_of(document: dict[str, Any]) -> tuple[str | None, str | None]:
    """Text (or label) and finish_reason of an answer that came at once. No text: a tool call."""
    label = document.get("label")
    return (label, None) if isinstance(label, str) else first_choice(document, key="message")


def first_choice(document: dict[str, Any], *, key: str) -> tuple[str | None, str | None]:
    """Text and finish_reason of an answer's first choice, or of a streamed part of it."""
    choice = _first(document)
    message, finish = choice.get(key), choice.get("finish_reason")
    content = message.get("content") if isinstance(message, dict) else choice.get("text")
    if content is None and choice:
        content = ""  # as in a stream, where nothing is sent of what was only thought
    text = content if isinstance(content, str) and (content or not calls_tool(document, key=key)) else None
    return text, finish if isinstance(finish, str) else None


def ends_of(document: dict[str, Any]) -> list[tuple[int, str | None]]:
    """Index and finish_reason of each choice of an answer, or of a streamed part of it."""
    choices = document.get("choices")
    found = [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
    ends = [(each.get("index", place), each.get("finish_reason")) for place, each in enumerate(found)]
    return [(index if isinstance(index, int) else 0, end if isinstance(end, str) else None) for index, end in ends]


def calls_tool(document: dict[str, Any], *, key: str) -> bool:
    """Whether an answer's first choice, or a streamed part of it, is a call: it needs no text."""
    message = _first(document).get(key)
    return isinstance(message, dict) and any(message.get(name) for name in ("tool_calls", "function_call"))


def _first(document: dict[str, Any]) -> dict[str, Any]:
    choices = document.get("choices")
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) and not found.get("index") else {}


def fault_of_finish(finish: str | None) -> str | None:
    """vLLM ends what it gives up (a shutdown, an engine that died) as if it were complete, with a word of its own."""
    return f"it ended with finish_reason {finish}" if finish in ("abort", "error") else None


def error_message(document: dict[str, Any]) -> str | None:
    """What an error says that came in place of an answer; None: it is none."""
    error = document.get("error")
    if not error:
        return None
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


_GENERATED = ("object", "choices", "data", "label", "usage")


@dataclass(frozen=True, kw_only=True)
class Sender:
    """What an answer says of itself, whichever version gave it: the rest of a document is what was generated. A version
    is known by all else that it may say (`system_fingerprint`, the form of its ids, fields of its own)."""

    answer_id: str
    model: str
    created: int
    """Unix time."""

    def own(self, document: dict[str, Any]) -> dict[str, Any]:
        """A version's answer, or a part of it, as one of the gateway's."""
        head = {"id": self.answer_id, "created": self.created} if "choices" in document else {}
        return {**head, "model": self.model, **{name: document[name] for name in _GENERATED if name in document}}


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
    417: "unsupported_expectation",
    429: "rate_limit_exceeded",
    502: "no_answer",
    503: "service_unavailable",
    504: "timeout",
}


def error_body(*, status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients understand it (https://platform.openai.com/docs/guides/error-codes)."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}


def error_in(document: dict[str, Any], *, status: int) -> dict[str, Any]:
    """The same of an error that a version gave: its words, and what it names, in the one form. Servers differ in the
    rest, and so would tell which one it was."""
    error = document.get("error")
    named: dict[str, Any] = error if isinstance(error, dict) else document | {"message": error or _flat(document)}
    message, code, param = (each if isinstance(each, str) else None for each in map(named.get, _NAMED))
    return error_body(status=status, message=message or f"status {status} without a reason", code=code, param=param)


_NAMED = ("message", "code", "param")


def _flat(document: dict[str, Any]) -> Any:
    """What an error says in no object of its own: older vLLMs say `message`, FastAPI `detail`, a text or a list."""
    said = document.get("message") or document.get("detail")
    if not isinstance(said, list):
        return said
    return "; ".join(str(each["msg"]) for each in said if isinstance(each, dict) and "msg" in each)
