"""PURE: a streamed answer as it passes: what may be handed on, its text so far, and what is wrong with it.

Server-sent events (HTML Living Standard, 9.2.6) are fields up to a blank line. Only whole events are handed on: where a
version breaks off inside one, its client is left where another event can begin, and can read the one that says so.
"""

from __future__ import annotations

import json

from finetune_gateway.openai_format import error_message, first_choice

HEARTBEAT = b": waiting for the version\n\n"
"""A comment, which clients skip."""
_LONGEST_EVENT = 1 << 20
_LONGEST_TEXT = 1 << 20
"""Longer answers are handed on but not read: judging must not cost memory."""


class EventStream:
    """The events of one answer of OpenAI's API, chunk by chunk."""

    def __init__(self) -> None:
        self.finish: str | None = None
        """The last finish_reason."""
        self._held = bytearray()
        self._scanned = 0
        self._data: list[bytes] = []
        self._open = False
        self._done = False
        self._failure: str | None = None
        self._said_error = False
        self._taken = 0
        """Events that could be read."""
        self._unread = False
        self._parts: list[str] = []
        self._characters = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take in a part; what the client may have now."""
        if self._unread:
            return chunk
        self._held += chunk
        whole = 0
        while (newline := self._held.find(b"\n", self._scanned)) >= 0:
            line = bytes(self._held[self._scanned : newline]).rstrip(b"\r")
            self._scanned = newline + 1
            if self._is_between_events(line):
                whole = self._scanned
        if len(self._held) - whole > _LONGEST_EVENT:
            self._unread, whole = True, len(self._held)
        ready = bytes(self._held[:whole])
        del self._held[:whole]
        self._scanned -= whole
        return ready

    def end(self) -> bytes:
        """Nothing follows; what the client may have besides. A last event that is not whole is left out."""
        if self._unread or not self._held.strip():
            return b""
        known, failed = self._taken, self._failure
        rest = self.feed(b"\n\n")
        if self._taken > known:
            return rest
        if not self.is_whole:
            self._failure = failed or "it ended in the middle of an event"
        return b""

    @property
    def may_have_comment(self) -> bool:
        """Whether the client is between two events."""
        return not self._unread

    @property
    def text(self) -> str | None:
        """What was generated; None where it is too long to be read."""
        return None if self._unread or self._characters > _LONGEST_TEXT else "".join(self._parts)

    @property
    def is_whole(self) -> bool:
        """Whether the version said that it had come to an end."""
        return self._done or self.finish is not None or self._unread

    @property
    def said_error(self) -> bool:
        """Whether the version has told the client what went wrong."""
        return self._said_error

    @property
    def fault(self) -> str | None:
        """Why this is no good answer, once it has ended."""
        if self._failure is not None:
            return self._failure
        return None if self.is_whole else "it ended without [DONE] and finish_reason"

    def _is_between_events(self, line: bytes) -> bool:
        """Take in a line; whether another event could follow it."""
        if not line:
            self._take_in(b"\n".join(self._data))
            self._data, self._open = [], False
        elif not line.startswith(b":"):
            self._open = True
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
        return not self._open

    def _take_in(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self._done = True
            self._taken += 1
            return
        if not payload:
            return
        try:
            document = json.loads(payload)
        except (ValueError, RecursionError):
            self._failure = self._failure or "an event is not JSON"
            return
        self._taken += 1
        error = error_message(document)
        if error is not None:
            self._said_error = True
            self._failure = self._failure or f"it says: {error}"
        text, finish = first_choice(document, key="delta")
        self.finish = finish or self.finish
        if text and self._characters <= _LONGEST_TEXT:
            self._parts.append(text)
            self._characters += len(text)
