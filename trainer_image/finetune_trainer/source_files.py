"""Files of a data source: found, told apart by their names, and read row by row without trusting their content."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune_trainer.errors import bad_data, not_found
from finetune_trainer.rows import (
    BadRow,
    Problem,
    Row,
    RowFormat,
    check,
    detect,
    expected_fields,
    parse_json,
    shortened,
    stratum_of,
)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_LONGEST_LINE = 16 << 20
_BOM = b"\xef\xbb\xbf"
# What only a damaged or mislabelled file raises.
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row as it is in the file: its fields, or what is wrong with it."""

    line: int
    fields: Mapping[str, Any] | Problem
    raw: str


def find(path: Path, *, uri: str) -> list[Path]:
    """The data files of a file or folder, sorted by name; hidden ones and those of other kinds are left out.

    Raises StageError: 66 where there is none, 65 for a single file of another kind.
    """
    kinds = ", ".join(SUFFIXES)
    if path.is_file():
        if not _suffix(path):
            raise bad_data("UnknownFileType", f"{uri} is none of {kinds} (also with .gz); rename or convert it")
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and _suffix(file) and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    for file in files:
        if not str(file).isprintable():
            raise bad_data("BadFileName", f"{uri}: the name of {file.name!a} is not printable text; rename the file")
    if not files:
        raise not_found(f"{uri} holds no file with the ending {kinds} (also with .gz)")
    return files


def read(
    file: Path, *, name: str, source: str, possible: Sequence[RowFormat], stratum_field: str | None
) -> Iterator[Row | BadRow]:
    """The rows of a file, good and bad, in order. `name` is what messages call the file.

    The first row that has the fields of one of the `possible` formats decides the file's format. Raises StageError
    (65) for a file that cannot be read as what its name says.
    """
    row_format = possible[0] if len(possible) == 1 else None
    for raw in _raw_rows(file, name):
        try:
            if isinstance(raw.fields, Problem):
                raise raw.fields
            row_format = row_format or detect(raw.fields, possible=possible)
            if row_format is None:
                raise Problem(field="", reason=f"has none of the fields {expected_fields(possible)}")
            content = check(raw.fields, row_format=row_format)
            stratum = stratum_of(raw.fields, field=stratum_field) if stratum_field is not None else None
        except Problem as problem:
            yield BadRow(
                source=source,
                file=name,
                line=raw.line,
                field=problem.field,
                reason=problem.reason,
                raw=shortened(raw.raw),
            )
        else:
            yield Row(source=source, file=name, line=raw.line, content=content, stratum=stratum)


def _suffix(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _raw_rows(file: Path, name: str) -> Iterator[RawRow]:
    with _open(file) as stream:
        try:
            match _suffix(file):
                case ".csv":
                    yield from _csv_rows(stream)
                case ".parquet":
                    yield from _parquet_rows(stream, name)
                case ".json":
                    yield from _json_rows(stream, name)
                case _:
                    yield from _json_lines(stream)
        except _DAMAGED as error:
            raise bad_data("UnreadableFile", f"{name} is damaged: {error}; write it again") from error


def _open(file: Path) -> BinaryIO:
    if not file.name.lower().endswith(".gz"):
        return file.open("rb")
    unpacked = gzip.open(file, "rb")  # noqa: SIM115 - the caller closes it
    if _suffix(file) == ".parquet":
        # Parquet is read from its end; a compressed stream has no end to seek to.
        with unpacked:
            return io.BytesIO(unpacked.read())
    return io.BufferedReader(unpacked)


def _json_lines(stream: BinaryIO) -> Iterator[RawRow]:
    number = 0
    while line := stream.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            problem = Problem(field="", reason=f"is longer than {_LONGEST_LINE >> 20} MiB")
            yield RawRow(line=number, fields=problem, raw=line[:4000].decode(errors="replace"))
            continue
        text = line.removeprefix(_BOM) if number == 1 else line
        if text.strip():
            yield _json_row(text, number)


def _json_row(line: bytes, number: int) -> RawRow:
    raw = line.decode(errors="replace").rstrip("\r\n")
    try:
        fields = parse_json(line.decode())
        if not isinstance(fields, dict):
            raise Problem(field="", reason="is not an object with fields")
    except UnicodeDecodeError as error:
        return RawRow(line=number, fields=Problem(field="", reason=f"is not UTF-8: {error.reason}"), raw=raw)
    except Problem as problem:
        return RawRow(line=number, fields=problem, raw=raw)
    return RawRow(line=number, fields=fields, raw=raw)


def _json_rows(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """A list of objects, or a single one; or, as many tools write it, JSON Lines under the name .json.

    Each element's extent is found first and then read strictly, so that one bad row is one bad row.
    """
    data = stream.read().removeprefix(_BOM)
    text = data.decode(errors="surrogateescape")
    start = len(text) - len(text.lstrip())
    if not text.startswith("[", start):
        if text[start:] and _value_end(text, start) == len(text.rstrip()):
            yield _json_row(text[start:].encode(errors="surrogateescape"), 1)
        else:
            yield from _json_lines(io.BytesIO(data))
        return
    position, number = _skip_space(text, start + 1), 0
    while not text.startswith("]", position):
        end = _value_end(text, position)
        if end is None:
            raise bad_data("UnreadableFile", f"{name} is not a JSON list: element {number + 1} cannot be read")
        number += 1
        yield _json_row(text[position:end].encode(errors="surrogateescape"), number)
        position = _skip_space(text, end)
        if text.startswith(",", position):
            position = _skip_space(text, position + 1)
        elif not text.startswith("]", position):
            raise bad_data("UnreadableFile", f"{name} is not a JSON list: no comma after element {number}")


def _value_end(text: str, start: int) -> int | None:
    """Where the JSON value that begins at `start` ends; None where there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _csv_rows(stream: BinaryIO) -> Iterator[RawRow]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(_LONGEST_LINE)
    reader = csv.reader(text, strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield RawRow(line=reader.line_num, fields=Problem(field="", reason=f"is not CSV: {error}"), raw="")
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
        elif cells:
            yield _csv_row(header, cells, reader.line_num)


def _csv_row(header: Sequence[str], cells: Sequence[str], line: int) -> RawRow:
    raw = ",".join(cells).encode(errors="replace").decode()
    fields: Mapping[str, Any] | Problem
    if len(cells) != len(header):
        fields = Problem(field="", reason=f"has {len(cells)} columns; the header has {len(header)}")
    elif len(set(header)) != len(header):
        fields = Problem(field="", reason="stands under a header that names a column twice")
    else:
        # An empty cell is a missing value: CSV cannot say otherwise.
        fields = {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}
    return RawRow(line=line, fields=fields, raw=raw)


def _parquet_rows(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield RawRow(line=number, fields=fields, raw=repr(fields))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise bad_data(
            "UnreadableFile", f"{name} is not a readable Parquet file (row {number + 1}): {error}"
        ) from error
