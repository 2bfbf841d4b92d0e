"""Rows of users' files as checked content. Every row that cannot be used is named with file, line, field and reason.

Nothing is guessed: JSON is read strictly (no NaN, no repeated keys) and text is valid UTF-8. Every field of a row is
used, refused by name where it would change what is learned, or named as carried along.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.shared_fields import Task
from finetune_trainer import chats
from finetune_trainer.dataset import Message
from finetune_trainer.errors import StageError, bad_configuration, bad_data
from finetune_trainer.fields import Problem, clean, is_absent, kind_of, text_of

RowFormat = Literal["Chat", "PromptCompletion", "Text", "Labelled"]

FORMATS: Mapping[Task, tuple[RowFormat, ...]] = {
    "Chat": ("Chat", "PromptCompletion"),
    "CausalLM": ("Text",),
    "SequenceClassification": ("Labelled",),
    "Seq2Seq": ("PromptCompletion",),
}
"""What each task can learn from, in the order in which `Auto` tries them."""

FIELDS: Mapping[RowFormat, tuple[str, ...]] = {
    "Chat": ("messages",),
    "PromptCompletion": ("prompt", "completion"),
    "Text": ("text",),
    "Labelled": ("text", "label"),
}
_CHATS = ("Chat", "PromptCompletion")
_OF_CHATS = ("system", "tools")
"""What a chat may have beside its messages."""
_ONLY_TEXT = "only text is learned; remove it or the row"
_REFUSED: Mapping[str, str] = {
    "system_prompt": 'is not read; name it "system"',
    "functions": 'are not read; write them as "tools"',
    "function_call": 'is not read; write it as "tool_calls" of the answer',
    "history": 'is not read; write earlier turns as "messages"',
    "loss_mask": 'is not read; write "weight": 0 into the messages that are not to be learned',
    "documents": "are not read; write them into a message",
    "chat_template_kwargs": "are not read; the template is used as it is by default",
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _ONLY_TEXT),
}
"""Fields that would change what is learned and are not used. Beside a text all but media are its owner's notes."""
_LONGEST_LABEL = 1024


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one row says: a chat, a text, or a text with its label."""

    messages: tuple[Message, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    """Descriptions of the tools that the chat may call."""
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
    carried: tuple[str, ...] = ()
    """Names of fields that are there and not used."""

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.file} line {self.line}"


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
    return next((name for name in possible if all(row.get(field) is not None for field in FIELDS[name])), None)


def expected_fields(possible: Sequence[RowFormat]) -> str:
    """The fields that a row must have, in words."""
    return ", or ".join(" and ".join(f'"{field}"' for field in FIELDS[name]) for name in possible)


def check(row: Mapping[str, Any], *, row_format: RowFormat) -> Content:
    """The row's content. Raises Problem."""
    for name, reason in _REFUSED.items():
        if not is_absent(row.get(name)) and (row_format in _CHATS or reason == _ONLY_TEXT):
            raise Problem(field=name, reason=reason)
    for name in chats.LEARN:
        if row.get(name) not in (None, "", 1, "1"):
            raise Problem(field=name, reason="of a row is not supported; weigh sources with data.sources[].weight")
    match row_format:
        case "Chat":
            return _chat(row, chats.messages_of(row.get("messages")))
        case "PromptCompletion":
            asked = Message(role="user", content=text_of(row, "prompt"))
            return _chat(row, (asked, Message(role="assistant", content=text_of(row, "completion"))))
        case "Text":
            return Content(text=text_of(row, "text"))
        case "Labelled":
            return Content(text=text_of(row, "text"), label=label_of(row.get("label"), field="label"))


def _chat(row: Mapping[str, Any], messages: tuple[Message, ...]) -> Content:
    tools = row.get("tools")
    return Content(
        messages=chats.with_system(messages, row.get("system")),
        tools=None if is_absent(tools) else chats.tools_of(tools) or None,
    )


def carried(row: Mapping[str, Any], *, row_format: RowFormat, stratum_field: str | None) -> tuple[str, ...]:
    """Names of the fields of a checked row that say something and are not used, each once."""
    used = {*FIELDS[row_format], *(_OF_CHATS if row_format in _CHATS else ()), *chats.LEARN, stratum_field}
    names = [name for name, value in row.items() if name not in used and not is_absent(value)]
    inside = chats.carried(row["messages"]) if row_format == "Chat" else ()
    return tuple(sorted({*names, *inside}))


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
            text = clean(value, field).strip()
        case _:
            raise Problem(field=field, reason=f"is {kind_of(value)}; expected a string or a whole number")
    if not text:
        raise Problem(field=field, reason="is empty")
    if len(text) > _LONGEST_LABEL:
        raise Problem(field=field, reason=f"has {len(text)} characters; at most {_LONGEST_LABEL}")
    return text


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


def carried_counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows have which fields that are not used."""
    return dict(sorted(Counter(name for row in rows for name in row.carried).items()))
