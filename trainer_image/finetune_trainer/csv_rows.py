"""Rows of CSV, read so that one damaged row costs one row.

A quote too many makes a reader take the lines that follow for one text, to the next quote or to the end of the file,
and nothing in the syntax says so. Here a row that breaks the syntax, or that swallowed lines which look like rows of
their own, is named by the line where it begins, and reading goes on at the next line.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.fields import Problem, RawRow

_DELIMITERS = ",;\t|"
# A column with few different, short values (labels, languages) tells rows from other lines.
_LONGEST_CLOSED_VALUE = 64
_LOOK_LIKE_ROWS = 0.8
# Where no column tells: a text this many times longer, in lines, than nearly all others of its file.
_BEYOND_HABIT = 3
_LONG_TEXT_OF_ONE_COLUMN = 10


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What the reader takes for one row: lines `first` to before `end`, counted from 0."""

    first: int
    end: int
    cells: tuple[str, ...] | None
    """None where it breaks the syntax."""
    error: str = ""

    @property
    def lines(self) -> int:
        return self.end - self.first


def read(lines: Sequence[str], *, wanted: Sequence[Collection[str]], longest: int) -> Iterator[RawRow]:
    """The rows below the header. `wanted` are the sets of columns that a row may need: they tell which delimiter the
    file has. No field is longer than `longest` characters.
    """
    csv.field_size_limit(longest)
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    if start == len(lines):
        return
    delimiter = _delimiter(lines[start], wanted)
    header, *_ = _records(lines, start, len(lines), delimiter)
    if header.cells is None:
        yield _damaged(header, lines, delimiter)
        return
    names = [cell.strip() for cell in header.cells]
    records = list(_records(lines, header.end, len(lines), delimiter))
    habit = _Habit.of(records, columns=len(names))
    waiting = records[::-1]
    while waiting:
        record = waiting.pop()
        if record.cells is None or habit.swallowed_rows(record, lines, delimiter):
            yield _damaged(record, lines, delimiter)
            waiting.extend(list(_records(lines, record.first + 1, record.end, delimiter))[::-1])
        elif record.cells:
            yield _row(names, record, "".join(lines[record.first : record.end]))


def _delimiter(header: str, wanted: Sequence[Collection[str]]) -> str:
    """The one that makes columns that are needed; a comma where none does."""

    def columns(delimiter: str) -> set[str]:
        return {cell.strip().strip('"') for cell in header.rstrip("\r\n").split(delimiter)}

    found = [delimiter for delimiter in _DELIMITERS if any(set(names) <= columns(delimiter) for names in wanted)]
    return found[0] if found else ","


def _records(lines: Sequence[str], first: int, end: int, delimiter: str) -> Iterator[_Record]:
    while first < end:
        # One that breaks the syntax ends where the reader saw it; what it had swallowed is read again.
        reader = csv.reader((lines[number] for number in range(first, end)), strict=True, delimiter=delimiter)
        read = 0
        try:
            for cells in reader:
                yield _Record(first=first + read, end=first + reader.line_num, cells=tuple(cells))
                read = reader.line_num
            return
        except csv.Error as error:
            yield _Record(
                first=first + read, end=first + read + 1, cells=None, error=_why(error, read, reader.line_num)
            )
            first += read + 1


def _why(error: csv.Error, first: int, last: int) -> str:
    if last - first > 1:
        return (
            f"opens a quote that is not closed as it should be in any of the {last - first} lines from here. Remove the"
            " quote, or write it twice inside of a quoted field"
        )
    return f"is not CSV: {error}. A quote inside of a quoted field is written twice"


@dataclass(frozen=True, kw_only=True)
class _Habit:
    """What is usual in a file."""

    columns: int
    lines: int
    """95 % of the rows have at most so many."""
    closed: Mapping[int, Collection[str]]
    """The values of columns that have few."""

    @classmethod
    def of(cls, records: Sequence[_Record], *, columns: int) -> _Habit:
        whole = [record for record in records if record.cells is not None and len(record.cells) == columns]
        single = [record.cells or () for record in whole if record.lines == 1]
        closed: dict[int, set[str]] = {}
        for column in range(columns if columns > 1 else 0):
            values = {cells[column] for cells in single}
            if 2 * len(values) <= len(single) and max(map(len, values), default=0) <= _LONGEST_CLOSED_VALUE:
                closed[column] = values
        spans = sorted(record.lines for record in whole)
        return cls(columns=columns, lines=spans[int(0.95 * (len(spans) - 1))] if spans else 1, closed=closed)

    def swallowed_rows(self, record: _Record, lines: Sequence[str], delimiter: str) -> bool:
        """Whether the lines of a row look like rows of their own."""
        if record.lines == 1:
            return False
        own = [line.strip("\r\n").replace('"', "") for line in lines[record.first : record.end]]
        alike = sum(self._looks_like_a_row(line.split(delimiter)) for line in own)
        if alike < _LOOK_LIKE_ROWS * len(own):
            return False
        if self.closed:
            return True
        least = _LONG_TEXT_OF_ONE_COLUMN if self.columns == 1 else 1
        return record.lines > max(least, _BEYOND_HABIT * self.lines)

    def _looks_like_a_row(self, cells: Sequence[str]) -> bool:
        return len(cells) == self.columns and all(cells[column] in values for column, values in self.closed.items())


def _damaged(record: _Record, lines: Sequence[str], delimiter: str) -> RawRow:
    reason = record.error or (
        f"opens a quote that is closed in line {record.end} only, and the lines between look like rows of their own."
        " Remove the quote, or write it twice inside of a quoted field"
    )
    raw = "".join(lines[record.first : record.end])
    return RawRow(line=record.first + 1, fields=Problem(field="", reason=reason), raw=_printable(raw))


def _row(names: Sequence[str], record: _Record, raw: str) -> RawRow:
    cells = record.cells or ()
    fields: Mapping[str, Any] | Problem
    if len(cells) != len(names):
        fields = Problem(field="", reason=f"has {len(cells)} columns; the header has {len(names)}: {', '.join(names)}")
    elif len(set(names)) != len(names):
        fields = Problem(field="", reason="stands under a header that names a column twice")
    elif any(cell[:1].isspace() and cell.lstrip().startswith('"') and cell in raw for cell in cells):
        # In a quoted field the quote would be there twice.
        fields = Problem(field="", reason="has a blank before a quote, so the quotes would be text; remove the blank")
    else:
        # An empty cell is a missing value: CSV cannot say otherwise.
        fields = {name: cell if cell else None for name, cell in zip(names, cells, strict=True)}
    return RawRow(line=record.first + 1, fields=fields, raw=_printable(",".join(cells)))


def _printable(raw: str) -> str:
    return raw.encode(errors="replace").decode()
