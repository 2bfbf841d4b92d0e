"""PURE: a streamed answer as it passes: what may be handed on, its text so far, and what is wrong with it.

Server-sent events (HTML Living Standard, 9.2.6) are fields up to a blank line; lines end with CR, LF or both, and the
text may be cut anywhere. Each event is written anew: nothing but what was generated tells who did, and where a version
breaks off inside an event, its client is left where another one can begin, and can read the one that says so.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable
from typing import Any

from finetune_gateway.openai_format import (
    calls_tool,
    ends_of,
    error_in,
    error_message,
    fault_of_finish,
    first_choice,
    read_object,
)

HEARTBEAT = b": waiting for the version\n\n"
"""A comment, which clients skip."""
_DONE = b"data: [DONE]\n\n"
_LONGEST_EVENT = 1 << 20
"""Characters."""
_LONGEST_TEXT = 1 << 20
"""Longer answers are handed on but not read: judging must not cost memory."""


class EventStream:
    """The events of one answer of OpenAI's API, chunk by chunk. `own` makes a version's document the gateway's."""

    def __init__(self, *, own: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.finish: str | None = None
        """The last finish_reason."""
        self.said_error = False
        """The version has told the client what went wrong."""
        self.has_begun = False
        """A part of an answer was handed on."""
        self._own = own
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._lines = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._line = ""
        self._data: list[str] = []
        self._held = 0
        self._done = False
        self._ended: dict[int, bool] = {}
        """By index: whether a choice that has begun has ended."""
        self._failure: str | None = None
        self._parts: list[str] = []
        self._characters = 0
        self._calls_tool = False

    def feed(self, chunk: bytes, *, last: bool = False) -> bytes:
        """Take in a part; what the client may have now: whole events, or a comment where the version sent one."""
        *lines, self._line = (self._line + self._lines.decode(chunk, last)).split("\n")
        ready = b"".join(map(self._take, lines))
        if self._held + len(self._line) > _LONGEST_EVENT:
            self._failure = self._failure or f"an event is longer than {_LONGEST_EVENT} characters"
            self._line, self._data, self._held = "", [], 0
        return ready

    def end(self) -> bytes:
        """Nothing follows; what the client may have besides. A last event that is not whole is left out."""
        before = self._failure
        ready = self.feed(b"\n\n", last=True)
        if not ready and self._failure != before and not before:
            self._failure = "it ended in the middle of an event"
        return ready

    @property
    def text(self) -> str | None:
        """What was generated; None where it is too long to be read, or a call of a tool in place of a text."""
        if self._characters > _LONGEST_TEXT or (self._calls_tool and not self._parts):
            return None
        return "".join(self._parts)

    @property
    def failure(self) -> str | None:
        """What went wrong so far."""
        return self._failure

    @property
    def fault(self) -> str | None:
        """Why this is no good answer, once it has ended."""
        if self._failure is None and not self._done and not (self._ended and all(self._ended.values())):
            return "it ended without [DONE] and finish_reason"
        return self._failure or (None if self.has_begun else "the answer holds nothing")

    def _take(self, line: str) -> bytes:
        if line.startswith(":"):
            return HEARTBEAT
        if line.startswith("data:"):
            self._data.append(line[5:].strip())
            self._held += len(line)
        if line or not self._data:  # other fields mean nothing here, and clients of OpenAI stumble over some of them
            return b""
        payload, self._data, self._held = "\n".join(self._data), [], 0
        return self._event(payload) if payload else b""

    def _event(self, payload: str) -> bytes:
        if payload == "[DONE]":
            self._done = True
            return _DONE if self._failure is None or self.said_error else b""
        try:
            document = read_object(payload)
        except ValueError:
            document = None
        if document is None:
            self._failure = self._failure or "an event is not JSON"
            return b""
        error = error_message(document)
        if error is not None:
            self.said_error = True
            self._failure = self._failure or f"it says: {error}"
            return b"data: %s\n\n" % json.dumps(error_in(document, status=500)).encode()
        self.has_begun = True
        text, finish = first_choice(document, key="delta")
        self.finish = finish or self.finish
        self._calls_tool = self._calls_tool or calls_tool(document, key="delta")
        for index, end in ends_of(document):
            self._failure = self._failure or fault_of_finish(end)
            self._ended[index] = self._ended.get(index, False) or bool(end)
        if text and self._characters <= _LONGEST_TEXT:
            self._parts.append(text)
            self._characters += len(text)
        return b"data: %s\n\n" % json.dumps(self._own(document)).encode()
