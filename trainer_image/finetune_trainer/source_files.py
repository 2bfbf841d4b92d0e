"""Files of a data source: found, told apart by their names, and read row by row without trusting their content."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from finetune_trainer import csv_rows
from finetune_trainer.errors import bad_data, not_found
from finetune_trainer.fields import Problem, RawRow, parse_json
from finetune_trainer.rows import (
    FIELDS,
    BadRow,
    Row,
    RowFormat,
    carried,
    check,
    detect,
    expected_fields,
    shortened,
    stratum_of,
)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_LONGEST_LINE = 16 << 20
_BOM = b"\xef\xbb\xbf"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What only a damaged or mislabelled file raises.
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


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
    for raw in _raw_rows(file, name, possible):
        try:
            if isinstance(raw.fields, Problem):
                raise raw.fields
            row_format = row_format or detect(raw.fields, possible=possible)
            if row_format is None:
                expected = expected_fields(possible)
                raise Problem(field="", reason=f"has none of the fields {expected}; {_seen(raw.fields)}")
            for missing in (field for field in FIELDS[row_format] if field not in raw.fields):
                raise Problem(field=missing, reason=f"is missing; {_seen(raw.fields)}")
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
            unused = carried(raw.fields, row_format=row_format, stratum_field=stratum_field)
            yield Row(source=source, file=name, line=raw.line, content=content, stratum=stratum, carried=unused)


def _seen(fields: Mapping[str, Any]) -> str:
    names = [f'"{name}"' for name in fields]
    return f"the row has {', '.join(names[:20]) or 'no field'}{' ...' if len(names) > 20 else ''}"


def _suffix(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _raw_rows(file: Path, name: str, possible: Sequence[RowFormat]) -> Iterator[RawRow]:
    with _open(file) as packed:
        try:
            stream = packed if _suffix(file) == ".parquet" else _in_utf8(packed, name)
            match _suffix(file):
                case ".csv":
                    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
                    wanted = [FIELDS[one] for one in possible]
                    yield from csv_rows.read(text.readlines(), wanted=wanted, longest=_LONGEST_LINE)
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


def _in_utf8(stream: BinaryIO, name: str) -> BinaryIO:
    """The same text in UTF-8, where a byte order mark tells what it is in. Others cannot be told for certain."""
    head = stream.peek(4096)[:4096] if isinstance(stream, io.BufferedReader) else b""
    # The mark of UTF-32 begins with that of UTF-16.
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            try:
                return io.BytesIO(stream.read().decode(encoding).encode())
            except UnicodeDecodeError as error:
                raise bad_data("UnreadableFile", f"{name} begins as {encoding} and is not: {error.reason}") from error
    if head.count(0) > len(head) // 4:
        raise bad_data(
            "UnreadableFile",
            f"{name} is no text in UTF-8: it is full of NUL bytes, as UTF-16 without a byte order mark is. Save it as"
            " UTF-8",
        )
    return stream


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
        return RawRow(
            line=number,
            fields=Problem(
                field="",
                reason=f"is not UTF-8 ({error.reason}), as files in Windows-1252 or Latin-1 are not; save it as UTF-8",
            ),
            raw=raw,
        )
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


def _parquet_rows(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield RawRow(line=number, fields=_without_padding(fields), raw=repr(fields))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise bad_data(
            "UnreadableFile", f"{name} is not a readable Parquet file (row {number + 1}): {error}"
        ) from error


def _without_padding(value: Any) -> Any:
    """The value without empty fields: a column of objects pads each with the fields of all the others."""
    match value:
        case dict():
            return {name: _without_padding(found) for name, found in value.items() if found is not None}
        case list():
            return [_without_padding(found) for found in value]
    return value
