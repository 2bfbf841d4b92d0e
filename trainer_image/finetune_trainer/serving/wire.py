"""The requests and answers of OpenAI's API (https://platform.openai.com/docs/api-reference), as far as they are served,
and of /v1/classify.

Types are strict: "5" is no number. What would change the answer and is not served is refused by name; anything
else that is not known (`user`, `metadata`, ...) is left unread. `response_format` is a wish: nothing forces the model.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from finetune_trainer.serving.decoding import Sampling
from finetune_trainer.serving.generation import Piece

MOST_TEXTS = 256
_NOT_SERVED = (
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "audio",
    "echo",
    "suffix",
)
_OFF: tuple[object, ...] = (None, False, "", [], {})
"""Values that ask for nothing (0 is False)."""


def _valid_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which is no valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_valid_unicode)]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class ContentPart(_Wire):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Wire):
    """One turn. `developer` is what newer clients call `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[ContentPart]

    def to_turn(self) -> dict[str, str]:
        """As chat templates want it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


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
        if isinstance(document, Mapping):
            asked = [name for name in _NOT_SERVED if document.get(name) not in _OFF]
            if asked:
                raise ValueError(f"{', '.join(asked)}: not supported by this server; leave it out")
        return document

    @property
    def sampling(self) -> Sampling:
        """What is not set is decoded as in the evaluation: greedily."""
        return Sampling(
            temperature=self.temperature or 0.0, top_p=1.0 if self.top_p is None else self.top_p, seed=self.seed
        )

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

    @property
    def longest(self) -> int | None:
        """Tokens that the client wants at most."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]

    @property
    def longest(self) -> int | None:
        """Tokens that the client wants at most."""
        return self.max_tokens

    @property
    def text(self) -> str:
        """The one prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class ClassifyRequest(_Wire):
    """POST /v1/classify: one text or several."""

    model: Text | None = None
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]

    @property
    def texts(self) -> list[str]:
        """The texts, one or several."""
        return [self.input] if isinstance(self.input, str) else self.input


class RequestError(Exception):
    """An answer that is an error. `str()` says what is wrong and what would be right."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class GenerationFormat:
    """The objects that one generated answer consists of."""

    def __init__(self, *, chat: bool, model: str) -> None:
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        self._common = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._whole = kind
        self._part = f"{kind}.chunk" if chat else kind

    def whole(self, *, text: str, finish: str, usage: Mapping[str, int]) -> dict[str, Any]:
        """The answer at once."""
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        return {**self._common, "object": self._whole, "choices": [choice], "usage": dict(usage)}

    def chunk(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        """A part of a streamed answer."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if piece.text or first:
            delta["content"] = piece.text
        content: dict[str, Any] = {"delta": delta} if self._chat else {"text": piece.text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": piece.finish}
        return {**self._common, "object": self._part, "choices": [choice]}

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
