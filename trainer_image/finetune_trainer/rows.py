"""Rows of users' files as checked content. Every row that cannot be used is named with file, line, field and reason.

Nothing is guessed: JSON is read strictly (no NaN, no repeated keys), text is valid UTF-8, and a field that would change
what is learned (tool calls, message weights) is refused instead of dropped. Fields that mean nothing to us are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.shared_fields import Task
from finetune_trainer.dataset import Message
from finetune_trainer.errors import StageError, bad_configuration, bad_data

RowFormat = Literal["Chat", "PromptCompletion", "Text", "Labelled"]

FORMATS: Mapping[Task, tuple[RowFormat, ...]] = {
    "Chat": ("Chat", "PromptCompletion"),
    "CausalLM": ("Text",),
    "SequenceClassification": ("Labelled",),
    "Seq2Seq": ("PromptCompletion",),
}
"""What each task can learn from, in the order in which `Auto` tries them."""

_FIELDS: Mapping[RowFormat, tuple[str, ...]] = {
    "Chat": ("messages",),
    "PromptCompletion": ("prompt", "completion"),
    "Text": ("text",),
    "Labelled": ("text", "label"),
}
_ROLES = ("system", "user", "assistant")
_LONGEST_LABEL = 1024


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one row says: a chat, a text, or a text with its label."""

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row that can be used."""

    source: str
    file: str
    line: int
    """Of the file, from 1; for Parquet and JSON lists the row."""
    content: Content
    stratum: str | None = None
    """The value of the field whose proportions the split keeps, where it keeps any."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used, and why."""

    source: str
    file: str
    line: int
    field: str
    reason: str
    raw: str
    """The row as far as it could be read, shortened."""

    def __str__(self) -> str:
        field = f'"{self.field}" ' if self.field else ""
        return f"{self.file} line {self.line}: {field}{self.reason}"

    def to_json(self) -> str:
        """Its line in quarantine.jsonl."""
        return json.dumps(vars(self), ensure_ascii=True, sort_keys=True)


class Problem(Exception):
    """What is wrong with a row. `field` is empty where it is the row as a whole."""

    def __init__(self, *, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


def formats_of(*, task: Task, declared: str | None) -> tuple[RowFormat, ...]:
    """The formats that a source may have. Raises StageError (78) for one that the task cannot learn from."""
    possible = FORMATS[task]
    if declared in (None, "Auto"):
        return possible
    chosen = tuple(name for name in possible if name == declared)
    if not chosen:
        raise bad_configuration(
            "FormatNotUsable", f"task {task} learns from {' or '.join(possible)}, not from format {declared}"
        )
    return chosen


def detect(row: Mapping[str, Any], *, possible: Sequence[RowFormat]) -> RowFormat | None:
    """The first format whose fields the row has; None where it has those of none."""
    return next((name for name in possible if all(row.get(field) is not None for field in _FIELDS[name])), None)


def expected_fields(possible: Sequence[RowFormat]) -> str:
    """The fields that a row must have, in words."""
    return ", or ".join(" and ".join(f'"{field}"' for field in _FIELDS[name]) for name in possible)


def check(row: Mapping[str, Any], *, row_format: RowFormat) -> Content:
    """The row's content. Raises Problem."""
    match row_format:
        case "Chat":
            return Content(messages=_messages(row.get("messages")))
        case "PromptCompletion":
            return Content(
                messages=(
                    Message(role="user", content=_text(row, "prompt")),
                    Message(role="assistant", content=_text(row, "completion")),
                )
            )
        case "Text":
            return Content(text=_text(row, "text"))
        case "Labelled":
            return Content(text=_text(row, "text"), label=label_of(row.get("label"), field="label"))


def label_of(value: object, *, field: str) -> str:
    """A class or a stratum as a string: text, a whole number or a boolean. Raises Problem."""
    match value:
        case None:
            raise Problem(field=field, reason="is missing")
        case bool():
            text = "true" if value else "false"
        case int():
            text = str(value)
        case float() if math.isfinite(value) and value.is_integer():
            # Parquet and pandas turn a column of integers with one gap into floats.
            text = str(int(value))
        case str():
            text = _clean(value, field).strip()
        case _:
            raise Problem(field=field, reason=f"is {_kind(value)}; expected a string or a whole number")
    if not text:
        raise Problem(field=field, reason="is empty")
    if len(text) > _LONGEST_LABEL:
        raise Problem(field=field, reason=f"has {len(text)} characters; at most {_LONGEST_LABEL}")
    return text


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if value is None:
        raise Problem(field=field, reason="is missing")
    if not isinstance(value, str):
        raise Problem(field=field, reason=f"is {_kind(value)}; expected a string")
    if not value.strip():
        raise Problem(field=field, reason="is empty")
    return _clean(value, field)


def _messages(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        # CSV has no lists: the column holds them as JSON.
        try:
            value = parse_json(value)
        except Problem as problem:
            raise Problem(field="messages", reason=f"is a string that is not JSON: {problem.reason}") from problem
    if value is None:
        raise Problem(field="messages", reason="is missing; expected a list of {role, content}")
    if not isinstance(value, list):
        raise Problem(field="messages", reason=f"is {_kind(value)}; expected a list of {{role, content}}")
    messages = tuple(_message(entry, index) for index, entry in enumerate(value))
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise Problem(field=f"messages[{index}].role", reason="is system; only the first message may be")
    turns = [message for message in messages if message.role != "system"]
    if not turns:
        raise Problem(field="messages", reason="has no message of a user and an assistant")
    if turns[0].role != "user":
        raise Problem(field="messages", reason="begins with the assistant; expected a user's message first")
    if turns[-1].role != "assistant":
        raise Problem(field="messages", reason=f"ends with role {turns[-1].role}; the last message must be the answer")
    if not turns[-1].content.strip():
        raise Problem(field=f"messages[{len(messages) - 1}].content", reason="is empty; there is nothing to learn")
    return messages


def _message(entry: object, index: int) -> Message:
    place = f"messages[{index}]"
    if not isinstance(entry, dict):
        raise Problem(field=place, reason=f"is {_kind(entry)}; expected {{role, content}}")
    role, content = entry.get("role"), entry.get("content")
    if role not in _ROLES:
        raise Problem(field=f"{place}.role", reason=f"is {_short(role)}; expected one of {', '.join(_ROLES)}")
    for name in ("tool_calls", "function_call", "tool_call_id"):
        if entry.get(name) is not None:
            raise Problem(field=f"{place}.{name}", reason="is not supported; remove it or the row")
    if entry.get("weight") not in (None, 1):
        raise Problem(field=f"{place}.weight", reason="is not supported; every answer is learned")
    if not isinstance(content, str):
        raise Problem(field=f"{place}.content", reason=f"is {_kind(content)}; expected a string")
    return Message(role=role, content=_clean(content, f"{place}.content"))


def _clean(text: str, field: str) -> str:
    if "\x00" in text:
        raise Problem(field=field, reason="contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Problem(field=field, reason="is not valid Unicode (an invalid byte or half a surrogate pair)") from error
    return text


def parse_json(text: str) -> Any:
    """Strict JSON. Raises Problem."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError as error:
        raise Problem(field="", reason="is nested too deeply") from error
    except ValueError as error:
        raise Problem(field="", reason=f"is not JSON: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Problem(field=repeated, reason="is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise Problem(field="", reason=f"is not JSON: {name} is not a number that JSON has")


def _kind(value: object) -> str:
    names: dict[type, str] = {
        type(None): "missing",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


class Quarantine:
    """Bad rows, up to a limit. The first ones are kept whole for quarantine.jsonl; all are counted."""

    KEPT = 1000
    NAMED = 3

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.rows: list[BadRow] = []

    def add(self, row: BadRow) -> None:
        """Count a bad row."""
        self.count += 1
        if len(self.rows) < max(self.KEPT, self.limit):
            self.rows.append(row)

    def good_rows(self, rows: Iterable[Row | BadRow]) -> Iterator[Row]:
        """The good rows, in order; the bad ones are put aside."""
        for row in rows:
            if isinstance(row, BadRow):
                self.add(row)
            else:
                yield row

    @property
    def exceeded(self) -> bool:
        """Whether there are more than the run allows."""
        return self.count > self.limit

    def error(self, *, rows_read: int) -> StageError:
        """TooManyBadRows (exit 65), naming the first."""
        named = "; ".join(str(row) for row in self.rows[: self.NAMED])
        more = f"; and {self.count - self.NAMED} more" if self.count > self.NAMED else ""
        return bad_data(
            "TooManyBadRows",
            f"{self.count} of {rows_read} rows cannot be used, and data.maxBadRows is {self.limit}: {named}{more}."
            " Correct the rows, or allow that many with data.maxBadRows",
        )

    def to_text(self) -> str:
        """quarantine.jsonl."""
        return "".join(row.to_json() + "\n" for row in self.rows)


def stratum_of(row: Mapping[str, Any], *, field: str) -> str:
    """The value of the field that a stratified split goes by. Raises Problem."""
    return label_of(row.get(field), field=field)


def shortened(raw: str, *, limit: int = 2000) -> str:
    """A row's text for the quarantine."""
    return raw if len(raw) <= limit else raw[:limit] + f"... ({len(raw)} characters)"
