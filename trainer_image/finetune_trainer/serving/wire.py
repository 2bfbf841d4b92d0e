"""The requests and answers of OpenAI's API (https://platform.openai.com/docs/api-reference), as far as they are served,
and of /v1/classify.

Types are strict: "5" is no number. A field is served, or listed as one that changes nothing, or refused by name.
`response_format` is a wish: nothing forces the model.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from finetune_trainer.serving.decoding import Sampling
from finetune_trainer.serving.generation import Piece

Value = TypeVar("Value")
MOST_TEXTS = 256
MOST_PROMPTS = 32
_LONGEST_PAUSE = 60
"""Seconds; what is longer, clients do not keep to."""
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "response_format",
)
"""Fields that change nothing here. Every other field that is not served is refused by name."""
IGNORED_OF_MESSAGES = ("name", "refusal", "annotations")
_OFF: tuple[object, ...] = (None, False, "", [], {})
"""Values that ask for nothing (0 is False)."""
_HARMLESS: Mapping[str, tuple[object, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "best_of": (1,),
    "modalities": (["text"],),
}
"""Values that ask for what is done anyway."""


def _valid_unicode(value: Value) -> Value:
    """A text, or whatever holds texts."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which is no valid Unicode") from None
    return value


Text = Annotated[str, AfterValidator(_valid_unicode)]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


def _refuse_unserved(document: Any, *, served: Collection[str], ignored: Collection[str]) -> None:
    """Raise ValueError naming the fields that ask for something that is not done."""
    if not isinstance(document, Mapping):
        return
    asked = [
        str(name)[:100].encode("ascii", "backslashreplace").decode()
        for name, value in document.items()
        if name not in served and name not in ignored and value not in _OFF and value not in _HARMLESS.get(name, ())
    ]
    if asked:
        raise ValueError(f"{', '.join(asked)}: not supported by this server; leave it out")


class ContentPart(_Wire):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Wire):
    """One turn. `developer` is what newer clients call `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[ContentPart] | None = None
    """None: an assistant's turn that only calls tools."""
    tool_calls: Annotated[list[dict[str, Any]], AfterValidator(_valid_unicode)] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, document: Any) -> Any:
        _refuse_unserved(document, served=cls.model_fields, ignored=IGNORED_OF_MESSAGES)
        return document

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content may be null only beside the tool_calls of an assistant")
        return self

    def to_turn(self) -> dict[str, Any]:
        """As chat templates want it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            turn["tool_calls"] = [_with_arguments(call) for call in self.tool_calls]
        return turn | ({"tool_call_id": self.tool_call_id} if self.tool_call_id else {})


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A call of a tool with its arguments as an object, as templates want them; clients send them as JSON in a text."""
    function = call.get("function")
    try:
        arguments = json.loads(function["arguments"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(function, dict) else call


class StreamOptions(_Wire):
    """What else to stream."""

    include_usage: bool = False


class _Generation(_Wire):
    """What chats and completions have in common."""

    model: Text | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Literal[1] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, document: Any) -> Any:
        _refuse_unserved(document, served=cls.model_fields, ignored=IGNORED)
        return document

    @property
    def sampling(self) -> Sampling:
        """What is not set is decoded as in the evaluation: greedily."""
        return Sampling(
            temperature=self.temperature or 0.0, top_p=1.0 if self.top_p is None else self.top_p, seed=self.seed
        )

    @property
    def longest(self) -> int | None:
        """Tokens that the client wants at most."""
        return getattr(self, "max_completion_tokens", None) or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings; an empty one stops nothing."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the number of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """A newer name of `max_tokens`."""


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]

    @property
    def texts(self) -> list[str]:
        """The prompts, one or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _one_stream(self) -> CompletionRequest:
        if self.stream and len(self.texts) > 1:
            raise ValueError("stream: answers to several prompts are not streamed; send one prompt, or leave it out")
        return self


class ClassifyRequest(_Wire):
    """POST /v1/classify: one text or several."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, document: Any) -> Any:
        _refuse_unserved(document, served=cls.model_fields, ignored=IGNORED)
        return document

    model: Text | None = None
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]

    @property
    def texts(self) -> list[str]:
        """The texts, one or several."""
        return [self.input] if isinstance(self.input, str) else self.input


class RequestError(Exception):
    """An answer that is an error. `str()` says what is wrong and what would be right."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        again_after: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        seconds = min(max(1, math.ceil(again_after)), _LONGEST_PAUSE)
        self.headers = {"Retry-After": str(seconds)} if status in (429, 503) else {}

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class GenerationFormat:
    """The objects that one generated answer consists of."""

    def __init__(self, *, chat: bool, model: str, counted: bool = False) -> None:
        self._chat = chat
        self._uncounted: dict[str, Any] = {"usage": None} if counted else {}
        kind = "chat.completion" if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        self._common = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._whole = kind
        self._part = f"{kind}.chunk" if chat else kind

    def whole(self, answers: Sequence[tuple[str, str]], *, usage: Mapping[str, int]) -> dict[str, Any]:
        """All at once, from text and finish reason of each choice."""
        choices = []
        for index, (text, finish) in enumerate(answers):
            content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": finish})
        return {**self._common, "object": self._whole, "choices": choices, "usage": dict(usage)}

    def chunk(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        """A part of a streamed answer."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if piece.text or first:
            delta["content"] = piece.text
        content: dict[str, Any] = {"delta": delta} if self._chat else {"text": piece.text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": piece.finish}
        return {**self._common, "object": self._part, "choices": [choice], **self._uncounted}

    def usage_chunk(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """The last part of a stream that counts its tokens."""
        return {**self._common, "object": self._part, "choices": [], "usage": dict(usage)}


def usage_of(*, prompt: int, answer: int) -> dict[str, int]:
    """Tokens, as clients count them."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def classified(
    *,
    model: str,
    labels: Sequence[str],
    probabilities: Sequence[Sequence[float]],
    truncated: Sequence[bool],
    single: bool,
    tokens: int,
) -> dict[str, Any]:
    """The answer of /v1/classify: an entry for each text, likeliest class first.

    For a single text its label also stands at the top.
    """
    data = []
    for index, (row, cut) in enumerate(zip(probabilities, truncated, strict=True)):
        ranked = sorted(zip(labels, row, strict=True), key=lambda item: item[1], reverse=True)
        entry: dict[str, Any] = {
            "index": index,
            "label": ranked[0][0],
            "probabilities": {label: round(probability, 6) for label, probability in ranked},
        }
        data.append(entry | {"truncated": True} if cut else entry)
    answer: dict[str, Any] = {
        "id": f"classify-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return answer | {"label": data[0]["label"]} if single else answer
