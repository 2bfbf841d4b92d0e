"""The parts that descriptions of objects are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.base import Condition
from finetune_api.shared_fields import NextStatus
from finetune_operator.cli import words
from finetune_operator.cli.tables import age, table
from finetune_operator.core.ports import Manifest
from finetune_operator.core.times import parse_time

INDENT = "  "
_EVENTS = 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a description: fields, a table, lines. For the command line it is text, for the console a section."""

    title: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    lines: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing is known of it; it is left out."""
        return not (any(self.fields.values()) or self.rows or self.lines)

    @property
    def text(self) -> str:
        """Under its title, indented; without one as it is."""
        indent = INDENT if self.title else ""
        shown = [f"{self.title}:"] if self.title else []
        shown += [fields(self.fields, indent=indent)] if self.fields else []
        shown += [table(header=self.header, rows=self.rows, indent=indent)] if self.rows else []
        return "\n".join([*shown, *(f"{indent}{line}" for line in self.lines)])


def text_of(parts: Iterable[Part]) -> str:
    """A description as text."""
    return "\n\n".join(part.text for part in parts if not part.is_empty)


def conditions(found: Iterable[Condition], *, now: datetime) -> Part:
    """The conditions."""
    rows = [
        (each.type, each.status, each.reason, age(since=each.last_transition_time, now=now), each.message)
        for each in found
    ]
    return Part(title="Conditions", header=("TYPE", "STATUS", "REASON", "AGE", "MESSAGE"), rows=rows)


def events(found: Iterable[Manifest], *, now: datetime) -> Part:
    """The newest events."""
    newest = sorted(found, key=lambda event: str(event.get("eventTime") or ""))[-_EVENTS:]
    rows = [
        (
            age(since=parse_time(event.get("eventTime")), now=now),
            str(event.get("type", "")),
            str(event.get("reason", "")),
            str(event.get("note", "")),
        )
        for event in newest
    ]
    return Part(title="Events", header=("AGE", "TYPE", "REASON", "MESSAGE"), rows=rows)


def fields(values: Mapping[str, str], *, indent: str = "") -> str:
    """Names and values in two columns; those without a value are left out."""
    shown = {name: value for name, value in values.items() if value}
    width = max((len(name) for name in shown), default=0) + 1
    return "\n".join(f"{indent}{name + ':':<{width}} {value}" for name, value in shown.items())


def when(time: datetime | None, *, now: datetime) -> str:
    """A moment, and how long ago it was."""
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC ({age(since=time, now=now)} ago)"


def duration(start: datetime | None, end: datetime | None, *, now: datetime) -> str:
    """From start to end, or until now; "" before the start."""
    return "" if start is None else words.seconds(((end or now) - start).total_seconds())


def waits_for(found: NextStatus | None, *, now: datetime) -> list[str]:
    """What an object waits for, and until when; nothing where its operator does not say."""
    if found is None:
        return []
    until = [] if found.until is None else [f"until {found.until:%Y-%m-%d %H:%M:%S} UTC"]
    if found.until is not None and found.until > now:
        until = [f"{until[0]}, in {words.seconds((found.until - now).total_seconds())}"]
    return [*found.waits_for, *until] or ["nothing"]


def next_(found: NextStatus | None, *, now: datetime) -> dict[str, str]:
    """The same as fields of a description."""
    if found is None:
        return {}
    return {"Waits for": "; ".join(waits_for(found, now=now)), "Then": "; ".join(found.then)}
