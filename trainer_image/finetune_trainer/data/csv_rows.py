"""Rows of CSV, read so that one damaged row costs one row.

A quote too many makes a reader take the lines that follow for one text, to the next quote or to the end of the file,
and nothing in the syntax says so. Here a row that breaks the syntax, or that swallowed lines which look like rows of
their own, is named by the line where it begins, and reading goes on at the next line.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.data.fields import Problem, RawRow, printable

_MARK = "\ufeff"
_DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r'"?sep=(.)"?')
# A column with few different, short values (labels, languages) tells rows from other lines.
_LONGEST_CLOSED_VALUE = 64
_MOST_CLOSED_VALUES = 4096
_LOOK_LIKE_ROWS = 0.8
# Where no column tells: a text this many times longer, in lines, than nearly all others of its file.
_BEYOND_HABIT = 3
_LONG_TEXT_OF_ONE_COLUMN = 10


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What the reader takes for one row."""

    first: int
    """Its first line, counted from 1."""
    lines: Sequence[str]
    cells: Sequence[str] | None
    """None where it breaks the syntax."""
    error: str = ""


class _Lines:
    """The lines of a file, of which no more are held than the reader of one row has looked at."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._held: deque[str] = deque()
        self._shown = 0
        self.next = 1
        """The number of the first line that was not taken."""

    def look(self) -> Iterator[str]:
        """The lines from the next one on, which stay."""
        self._shown = 0
        while True:
            if self._shown == len(self._held):
                line = next(self._lines, None)
                if line is None:
                    return
                self._held.append(line)
            self._shown += 1
            yield self._held[self._shown - 1]

    def take(self, count: int) -> list[str]:
        """Remove lines that were looked at."""
        self._shown -= count
        self.next += count
        return [self._held.popleft() for _ in range(count)]

    def put_back(self, lines: Sequence[str]) -> None:
        """Lines that were taken last, to be looked at again."""
        self._held.extendleft(reversed(lines))
        self._shown = 0
        self.next -= len(lines)


def read(opened: Callable[[], Iterator[str]], *, wanted: Sequence[Collection[str]], longest: int) -> Iterator[RawRow]:
    """The rows below the header of a file, whose lines `opened` gives anew each time: it is read twice, first for what
    is usual in it. `wanted` are the sets of columns that a row may need: they tell which delimiter the file has. No
    field is longer than `longest` characters.
    """
    csv.field_size_limit(longest)
    start = _Start.of(_Lines(opened()), wanted, longest=longest)
    if start is None:
        return
    if start.header.cells is None:
        yield _damaged(start.header)
        return
    names = _names(start.header.cells)
    habit = _Habit.of(start.rows, columns=len(names))
    again = _Start.of(lines := _Lines(opened()), wanted, longest=longest)
    for record in () if again is None else again.rows:
        if record.cells is None:
            yield _damaged(record)
        elif habit.swallowed_rows(record, start.delimiter):
            yield _damaged(record)
            lines.put_back(record.lines[1:])
        elif any(record.cells):
            yield _row(names, record)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a file begins with, and the rows that follow."""

    delimiter: str
    header: _Record
    rows: Iterator[_Record]

    @classmethod
    def of(cls, lines: _Lines, wanted: Sequence[Collection[str]], *, longest: int) -> _Start | None:
        """None for a file without text."""
        said = None
        for line in lines.look():
            found = _SEPARATOR.fullmatch(line.strip())
            if found is None and line.strip():
                delimiter = said or _delimiter(line, wanted)
                rows = _records(lines, delimiter, longest=longest)
                header = next(rows)
                columns = len(header.cells or ())
                trimmed = (
                    row if row.cells is None else replace(row, cells=_trimmed(row.cells, columns)) for row in rows
                )
                return cls(delimiter=delimiter, header=header, rows=trimmed)
            # Excel says in a line of its own what it separates fields with.
            said = found[1] if found else said
            lines.take(1)
        return None


def _trimmed(cells: Sequence[str], columns: int) -> Sequence[str]:
    """Without the empty cells that spreadsheets fill rows up with."""
    return cells if any(cells[columns:]) else cells[:columns]


def _names(header: Sequence[str]) -> list[str]:
    return [cell.strip() or f"column {number}" for number, cell in enumerate(header, 1)]


def _repeats(cells: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a row is the header. Of one column it may be a text; behind a byte order mark it is none."""
    first = cells[0].removeprefix(_MARK)
    bare = [first.strip('"') if first != cells[0] else first, *cells[1:]]
    return _names(bare) == list(names) and (len(names) > 1 or first != cells[0])


def _delimiter(header: str, wanted: Sequence[Collection[str]]) -> str:
    """The one that makes columns that are needed; a comma where none does."""

    def columns(delimiter: str) -> set[str]:
        return {cell.strip().strip('"') for cell in header.rstrip("\r\n").split(delimiter)}

    found = [delimiter for delimiter in _DELIMITERS if any(set(names) <= columns(delimiter) for names in wanted)]
    return found[0] if found else ","


def _records(lines: _Lines, delimiter: str, *, longest: int) -> Iterator[_Record]:
    while True:
        reader = csv.reader(lines.look(), strict=True, delimiter=delimiter)
        read = 0
        try:
            for cells in reader:
                first, taken = lines.next, lines.take(reader.line_num - read)
                read = reader.line_num
                if max(map(len, taken), default=0) < longest:
                    yield _Record(first=first, lines=taken, cells=cells)
                else:  # no more was read of it
                    yield _Record(first=first, lines=taken, cells=None, error=f"is longer than {longest >> 20} MiB")
            return
        except csv.Error as error:
            # It ends where it began; what it had swallowed is read again.
            why = _why(error, lines=reader.line_num - read)
            yield _Record(first=lines.next, lines=lines.take(1), cells=None, error=why)


def _why(error: csv.Error, *, lines: int) -> str:
    if lines > 1:
        return (
            f"opens a quote that is not closed as it should be in any of the {lines} lines from here. Remove the"
            " quote, or write it twice inside of a quoted field"
        )
    said = str(error).partition(" - ")[0]
    return f"is not CSV: {said}. Quote a text with line ends in it, and write a quote inside of it twice"


@dataclass(frozen=True, kw_only=True)
class _Habit:
    """What is usual in a file."""

    columns: int
    lines: int
    """95 % of the rows have at most so many."""
    closed: Mapping[int, Collection[str]]
    """The values of columns that have few."""

    @classmethod
    def of(cls, records: Iterator[_Record], *, columns: int) -> _Habit:
        spans: Counter[int] = Counter()
        values: dict[int, set[str]] = {column: set() for column in range(columns if columns > 1 else 0)}
        for record in records:
            if record.cells is None or len(record.cells) != columns:
                continue
            spans[len(record.lines)] += 1
            for column in list(values) if len(record.lines) == 1 else ():
                values[column].add(record.cells[column])
                if len(record.cells[column]) > _LONGEST_CLOSED_VALUE or len(values[column]) > _MOST_CLOSED_VALUES:
                    del values[column]
        return cls(
            columns=columns,
            lines=_quantile(spans, 0.95),
            closed={column: found for column, found in values.items() if 2 * len(found) <= spans[1]},
        )

    def swallowed_rows(self, record: _Record, delimiter: str) -> bool:
        """Whether the lines of a row look like rows of their own."""
        if len(record.lines) == 1:
            return False
        own = [line.strip("\r\n").replace('"', "") for line in record.lines]
        alike = sum(self._looks_like_a_row(_trimmed(line.split(delimiter), self.columns)) for line in own)
        if alike < _LOOK_LIKE_ROWS * len(own):
            return False
        if self.closed:
            return True
        least = _LONG_TEXT_OF_ONE_COLUMN if self.columns == 1 else 1
        return len(record.lines) > max(least, _BEYOND_HABIT * self.lines)

    def _looks_like_a_row(self, cells: Sequence[str]) -> bool:
        return len(cells) == self.columns and all(cells[column] in values for column, values in self.closed.items())


def _quantile(counts: Mapping[int, int], share: float) -> int:
    """The number that this share of those counted are at most; 1 where there are none."""
    place, seen = int(share * (sum(counts.values()) - 1)), 0
    for number, count in sorted(counts.items()):
        seen += count
        if seen > place:
            return number
    return 1


def _damaged(record: _Record) -> RawRow:
    last = record.first + len(record.lines) - 1
    reason = record.error or (
        f"opens a quote that is closed in line {last} only, and the lines between look like rows of their own."
        " Remove the quote, or write it twice inside of a quoted field"
    )
    return RawRow(line=record.first, fields=Problem(field="", reason=reason), raw=printable("".join(record.lines)))


def _row(names: Sequence[str], record: _Record) -> RawRow:
    raw = "".join(record.lines)
    cells = record.cells or ()
    fields: Mapping[str, Any] | Problem
    if len(cells) != len(names):
        fields = Problem(field="", reason=f"has {len(cells)} columns; the header has {len(names)}: {', '.join(names)}")
    elif len(set(names)) != len(names):
        fields = Problem(field="", reason="stands under a header that names a column twice")
    elif _repeats(cells, names):
        fields = Problem(field="", reason="repeats the header, as in files that were joined; remove it")
    elif any(cell[:1].isspace() and cell.lstrip().startswith('"') and cell in raw for cell in cells):
        # In a quoted field the quote would be there twice.
        fields = Problem(field="", reason="has a blank before a quote, so the quotes would be text; remove the blank")
    else:
        # An empty cell is a missing value: CSV cannot say otherwise.
        fields = {name: cell if cell else None for name, cell in zip(names, cells, strict=True)}
    return RawRow(line=record.first, fields=fields, raw=printable(",".join(cells)))
