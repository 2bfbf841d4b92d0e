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

from finetune_trainer.data import chats
from finetune_trainer.data.dataset import Message
from finetune_trainer.data.fields import Problem, clean, is_absent, kind_of, printable, quoted, text_of
from finetune_trainer.process.errors import StageError, bad_data

RowFormat = Literal["Chat", "PromptCompletion", "Text", "Labelled"]

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
_REFUSED: dict[str, str] = {
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
_BESIDE_PROMPTS: dict[str, str] = dict.fromkeys(
    ("instruction", "input", "context"), 'is not read; write it into "prompt", as the model will be asked'
)
"""Columns that other formats (Alpaca, Dolly) make a prompt of, together with another one."""
_ELSEWHERE: Mapping[str, str] = {
    "conversations": (
        'ShareGPT writes; write "messages" with "role" (user for human, assistant for gpt) and "content", as in'
        ' {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
    ),
    "instruction": (
        'Alpaca and Dolly write; write "prompt" (the instruction with its input or context) and "completion", as in'
        ' {"prompt": "Add 2 and 3", "completion": "5"}'
    ),
    "chosen": 'preferences are written; write the answer to learn as in {"prompt": "Hi", "completion": "Hello"}',
}
"""Fields that tell whose rows these are, and how they are written here."""
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


def detect(row: Mapping[str, Any], *, possible: Sequence[RowFormat]) -> RowFormat | None:
    """The first format whose fields the row has; None where it has those of none."""
    return next((name for name in possible if all(row.get(field) is not None for field in FIELDS[name])), None)


def lacks(row: Mapping[str, Any], *, possible: Sequence[RowFormat]) -> Problem:
    """What is wrong with a row that has the fields of none of the formats."""
    wanted = ", or ".join(" and ".join(f'"{field}"' for field in FIELDS[name]) for name in possible)
    field, reason = "", f"has none of the fields {wanted}"
    if len(possible) == 1:
        field, reason = next(name for name in FIELDS[possible[0]] if name not in row), "is missing"
    known = [f", as {said}" for name, said in _ELSEWHERE.items() if name in row and possible[0] in _CHATS]
    return Problem(field=field, reason=f"{reason}; the row has {quoted(row) or 'no field'}{''.join(known[:1])}")


def check(row: Mapping[str, Any], *, row_format: RowFormat) -> Content:
    """The row's content. Raises Problem."""
    for name, reason in (_REFUSED | (_BESIDE_PROMPTS if row_format == "PromptCompletion" else {})).items():
        if not is_absent(row.get(name)) and (row_format in _CHATS or reason == _ONLY_TEXT):
            raise Problem(field=name, reason=reason)
    for name in chats.LEARN:
        if row.get(name) not in (None, "", 1, "1"):
            raise Problem(field=name, reason="of a row is not supported; weigh sources with data.sources[].weight")
    match row_format:
        case "Chat":
            return _chat(row, chats.messages_of(row.get("messages")))
        case "PromptCompletion":
            if isinstance(row["prompt"], list):
                raise Problem(field="prompt", reason='is a list; write prompt and completion as one list "messages"')
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
    return tuple(sorted(map(printable, {*names, *inside})))


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
        """TooManyBadRows (exit 65), naming the first of each kind."""
        kinds: dict[tuple[str, str], BadRow] = {}
        for row in self.rows:
            kinds.setdefault((row.field, row.reason), row)
        first = list(kinds.values())[: self.NAMED]
        named = "; ".join(map(str, first))
        more = f"; and {self.count - len(first)} more" if self.count > len(first) else ""
        return bad_data(
            "TooManyBadRows",
            f"data.maxBadRows: {self.limit}, and {self.count} of {rows_read} rows cannot be used: {named}{more}."
            " Correct the rows, or allow that many",
        )

    def to_text(self) -> str:
        """quarantine.jsonl."""
        return "".join(row.to_json() + "\n" for row in self.rows)


def carried_counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows have which fields that are not used."""
    return dict(sorted(Counter(name for row in rows for name in row.carried).items()))
