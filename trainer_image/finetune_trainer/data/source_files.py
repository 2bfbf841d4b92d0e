"""Files of a data source: found, told apart by their names, and read row by row without trusting their content."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import math
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TextIO

from finetune_trainer.data import csv_rows
from finetune_trainer.data.fields import Problem, RawRow, Unread, clean, listed, parse_json, printable
from finetune_trainer.data.rows import (
    FIELDS,
    BadRow,
    Content,
    Row,
    RowFormat,
    carried,
    check,
    detect,
    label_of,
    lacks,
)
from finetune_trainer.process.errors import bad_data, not_found

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow")
KINDS = f"{', '.join(SUFFIXES)} (also with .gz)"
_LONGEST = 16 << 20
"""Characters of a row."""
_KEPT = 2000
"""Characters of a bad row."""
_CHUNK = 1 << 16
_ROWS_AT_ONCE = 1024
_UTF8 = "utf-8-sig"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MARK = "\ufeff"
"""A byte order mark, which also stands where files were joined."""
_BLANK = f"{_MARK} \t\r\n"
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
_STATE = "state.json"
_DESCRIBING = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
_FOREIGN: Mapping[bytes, str] = {
    b"\x1f\x8b\x08": "is packed with gzip: end its name with .gz (once for each time that it is packed)",
    b"PK\x03\x04": "is a zip archive or an Excel workbook: unpack it, or save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "is a document of an old Excel: save the sheet as CSV in UTF-8",
    b"\x28\xb5\x2f\xfd": "is packed with Zstandard: unpack it, or pack it with gzip",
    b"\xfd7zXZ\x00": "is packed with xz: unpack it, or pack it with gzip",
    b"BZh91AY&SY": "is packed with bzip2: unpack it, or pack it with gzip",
    b"PAR1\x15": "is Parquet: let its name end with .parquet",
    b"ARROW1\0\0": "is a file of Arrow: let its name end with .arrow",
    b"version https://git-lfs.github.com/spec/": "is a Git LFS pointer, not the file that it points to: run `git lfs"
    " pull` where the data was cloned",
    b"<!doctype html": "is a web page, as servers send one for a file that is not there or needs a login: download it"
    " again",
    b"<html": "is a web page: download the file again",
}
"""What files of other kinds begin with (those of the web in letters of any case), and what is to be done with them."""
_OWN: Mapping[str, bytes] = {".parquet": b"PAR1", ".arrow": b"ARROW1"}
_LONGEST_BEGINNING = max(map(len, _FOREIGN))
# What only a damaged or mislabelled file raises.
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


def find(path: Path, *, uri: str) -> tuple[list[Path], list[str]]:
    """The data files of a file or folder, sorted by name, and the names of what else a folder holds and is not read:
    files of other kinds, or that only describe the data, and links to folders. Hidden ones are not looked at.

    Raises StageError: 66 where there is no data file, 65 for a single file of another kind, or a link to nothing.
    """
    if path.is_file():
        if not _suffix(path):
            raise bad_data("UnknownFileType", f"{uri} is none of {KINDS}; rename or convert it")
        return [path], []
    names, others = [], []
    for entry in sorted(path.rglob("*")):
        if entry.is_file():
            names.append(entry.relative_to(path))
        elif entry.is_symlink() or not entry.is_dir():
            others.append(entry.relative_to(path))
    seen = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    files = [name for name in seen if _is_data(path / name)]
    for name in (name for name in seen if name.name == _STATE and not _is_data(path / name)):
        _all_there(path / name, uri=uri)
    told = set(files)
    left_out = [printable(name.as_posix()) for name in seen if name not in told]
    left_out += [_left_out(path / name, name, uri=uri) for name in others if name.name[0] != "."]
    for name in files:
        if not str(name).isprintable():
            raise bad_data("BadFileName", f"{uri}: the name of {name.name!a} is not printable text; rename the file")
    if not files:
        raise not_found(f"{uri} holds no data in a file that ends with {KINDS}; it holds {listed(left_out) or 'none'}")
    return [path / name for name in files], left_out


def _left_out(entry: Path, name: Path, *, uri: str) -> str:
    """The name of what is no file; that of a link to a folder, which is not followed, with a slash. Raises StageError
    (65) where data was meant.
    """
    said = printable(name.as_posix())
    if entry.is_dir():
        return f"{said}/"
    if _suffix(entry) and not entry.exists():
        raise bad_data(
            "MissingFile",
            f"{uri}: {said} is a link to {printable(str(entry.readlink()))}, which is not there: put it there, or"
            " remove the link",
        )
    return said


def _is_data(file: Path) -> bool:
    """Whether a file of a folder holds rows, and is none of those that tools for data sets write beside them, which
    only their names tell; `datasets` calls what it keeps for itself cache-SOMETHING.
    """
    if file.name == _STATE:
        return not (file.parent / "dataset_info.json").exists()
    described = file.name in _DESCRIBING or (_suffix(file) == ".arrow" and file.name.startswith("cache-"))
    return _suffix(file) is not None and not described


def _all_there(state: Path, *, uri: str) -> None:
    """Whether the files are there that `datasets.save_to_disk` says belong to a data set. Raises StageError (65)."""
    try:
        told = [state.parent / each["filename"] for each in json.loads(state.read_text())["_data_files"]]
    except (ValueError, KeyError, TypeError):
        return
    if missing := [file.name for file in told if not file.exists()]:
        raise bad_data(
            "MissingFile",
            f"{uri} lacks {listed(missing)}, which its {_STATE} names as parts of the data: copy all of them, or remove"
            f" {_STATE} where the others are meant to be all",
        )


def read(
    file: Path,
    *,
    name: str,
    source: str,
    possible: Sequence[RowFormat],
    stratum_field: str | None,
    judge: Callable[[Content], None] = lambda content: None,
) -> Iterator[Row | BadRow]:
    """The rows of a file, good and bad, in order. `name` is what messages call the file; `judge` raises Problem for
    content that does not go with the base model.

    The first row that has the fields of one of the `possible` formats decides the file's format. Raises StageError
    (65) for a file that cannot be read as what its name says.
    """
    row_format = possible[0] if len(possible) == 1 else None
    for raw in _raw_rows(file, name, possible):
        try:
            if isinstance(raw.fields, Problem):
                raise raw.fields
            row_format = row_format or detect(raw.fields, possible=possible)
            if row_format is None or any(field not in raw.fields for field in FIELDS[row_format]):
                raise lacks(raw.fields, possible=possible if row_format is None else [row_format])
            content = check(raw.fields, row_format=row_format)
            judge(content)
            stratum = None if stratum_field is None else label_of(raw.fields.get(stratum_field), field=stratum_field)
        except Problem as problem:
            text = raw.raw if len(raw.raw) <= _KEPT else f"{raw.raw[:_KEPT]}... ({len(raw.raw)} characters)"
            said: dict[str, Any] = {"field": problem.field, "reason": problem.reason, "raw": text}
            yield BadRow(source=source, file=name, line=raw.line, **said)
        else:
            unused = carried(raw.fields, row_format=row_format, stratum_field=stratum_field)
            yield Row(source=source, file=name, line=raw.line, content=content, stratum=stratum, carried=unused)


def _suffix(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _raw_rows(file: Path, name: str, possible: Sequence[RowFormat]) -> Iterator[RawRow]:
    match _suffix(file):
        case ".parquet" | ".arrow":
            yield from _arrow_rows(file, name)
        case ".csv":
            wanted = [FIELDS[one] for one in possible]
            yield from csv_rows.read(partial(_csv_lines, file, name), wanted=wanted, longest=_LONGEST)
        case ".json":
            yield from _json_rows(partial(_text, file, name), name)
        case _:
            yield from _json_lines(partial(_text, file, name))


@contextmanager
def _open(file: Path, name: str) -> Iterator[io.BufferedReader[Any]]:
    """The file, unpacked where it is packed. Raises StageError (65) for a damaged one, or one of another kind."""
    with file.open("rb") as stream:
        _refuse_foreign(stream.read(_LONGEST_BEGINNING), name, own=b"\x1f\x8b" if _is_packed(file) else _own(file))
    try:
        with io.BufferedReader(gzip.open(file)) if _is_packed(file) else file.open("rb") as unpacked:
            if _is_packed(file):
                _refuse_foreign(unpacked.peek(_LONGEST_BEGINNING), name, own=_own(file))
            yield unpacked
    except _DAMAGED as error:
        raise bad_data("UnreadableFile", f"{name} is damaged: {error}; write it again") from error


def _refuse_foreign(head: bytes, name: str, *, own: bytes | None) -> None:
    """Raises StageError (65) for a file that begins as one of another kind, other than as `own`."""
    for beginning, said in _FOREIGN.items():
        begun = head[: len(beginning)]
        if (begun.lower() if beginning[:1] == b"<" else begun) == beginning and not (own and beginning.startswith(own)):
            raise bad_data("UnreadableFile", f"{name} {said}")


def _own(file: Path) -> bytes | None:
    return _OWN.get(_suffix(file) or "")


def _is_packed(file: Path) -> bool:
    return file.name.lower().endswith(".gz")


@contextmanager
def _text(file: Path, name: str, *, newline: str = "\n") -> Iterator[TextIO]:
    """The file as text, in the encoding that a byte order mark tells, else UTF-8; others cannot be told for certain.

    Bytes that are not UTF-8 are read as lone surrogates, for `fields.clean` to find in their row. Raises StageError
    (65) where there can be no rows at all.
    """
    with _open(file, name) as packed:
        head = packed.peek(4096)[:4096]
        # The mark of UTF-32 begins with that of UTF-16.
        encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), _UTF8)
        if encoding == _UTF8 and head.count(0) > len(head) // 4:
            raise bad_data(
                "UnreadableFile",
                f"{name} is no text in UTF-8: it is full of NUL bytes, as UTF-16 without a byte order mark is. Save it"
                " as UTF-8",
            )
        if re.match(r"[^\r\n]*\r?\n", head.decode(encoding, errors="ignore")):
            newline = "\n"  # a carriage return alone ends lines only where it ends the first one
        errors = "surrogateescape" if encoding == _UTF8 else "strict"
        with io.TextIOWrapper(packed, encoding=encoding, errors=errors, newline=newline) as text:
            try:
                yield text
            except UnicodeDecodeError as error:
                raise bad_data("UnreadableFile", f"{name} begins as {encoding} and is not: {error}") from error


def _csv_lines(file: Path, name: str) -> Iterator[str]:
    with _text(file, name, newline="") as text:
        while line := text.readline(_LONGEST):
            _pass_rest(text, line)
            yield line


def _json_lines(opened: Callable[[], AbstractContextManager[TextIO]]) -> Iterator[RawRow]:
    with opened() as text:
        number = 0
        while line := text.readline(_LONGEST):
            number += 1
            if _pass_rest(text, line):
                problem = Problem(field="", reason=f"is longer than {_LONGEST >> 20} MiB")
                yield RawRow(line=number, fields=problem, raw=printable(line[:4000]))
            elif line.strip(_BLANK):
                yield _json_row(line.lstrip(_MARK).rstrip("\r\n"), number)


def _pass_rest(text: TextIO, line: str) -> bool:
    """Leave the rest of a line of which as much was read as a row may have; whether there was one."""
    cut = len(line) >= _LONGEST and not line.endswith(("\n", "\r"))
    rest = line if cut else ""
    while rest and not rest.endswith(("\n", "\r")):
        rest = text.readline(_LONGEST)
    return cut


def _json_row(text: str, number: int) -> RawRow:
    fields: Mapping[str, Any] | Problem
    try:
        fields = parse_json(clean(text, ""))
        if not isinstance(fields, dict):
            raise Problem(field="", reason="is not an object with fields")
    except Problem as problem:
        fields = problem
    return RawRow(line=number, fields=fields, raw=printable(text))


def _json_rows(opened: Callable[[], AbstractContextManager[TextIO]], name: str) -> Iterator[RawRow]:
    """A list of objects, or a single one; or, as many tools write it, JSON Lines under the name .json.

    Each element's extent is found first and then read strictly, so that one bad row is one bad row.
    """
    with opened() as text:
        values = _Values(text)
        if values.symbol() == "[":
            yield from _elements(values, name)
            return
        with suppress(Problem):
            single = values.value()
            if not values.symbol():
                yield _json_row(single, 1)
                return
            if "\n" in single:
                raise bad_data(
                    "UnreadableFile",
                    f"{name} holds objects one behind the other, each over several lines; write them as one list"
                    " ([...], with commas between), or each into one line",
                )
        yield from _json_lines(opened)


def _elements(values: _Values, name: str) -> Iterator[RawRow]:
    """Of a list, behind which nothing may stand."""
    number = 0
    values.skip()
    while values.symbol() != "]":
        number += 1
        try:
            yield _json_row(values.value(), number)
        except Problem as problem:
            why = f"element {number} {problem.reason}"
            raise bad_data("UnreadableFile", f"{name} is not a JSON list: {why}") from problem
        if values.symbol() == ",":
            values.skip()
        elif not values.symbol():
            raise bad_data("UnreadableFile", f"{name} is cut off: its list is not closed behind element {number}")
        elif values.symbol() != "]":
            raise bad_data("UnreadableFile", f"{name} is not a JSON list: no comma after element {number}")
    values.skip()
    if values.symbol():
        raise bad_data(
            "UnreadableFile",
            f"{name} goes on behind the end of its list, of {number} elements; write one list, or objects without a"
            " list, one a line",
        )


class _Values:
    """JSON values in a text, of which not much more is held than one of them."""

    def __init__(self, text: TextIO) -> None:
        self._text, self._ended = text, False
        self._held, self._at = "", 0
        """What was read, and where in it what follows begins."""

    def symbol(self) -> str:
        """The next character that is no white space; empty at the end."""
        while self._pass_white_space() and not self._ended:
            self._read_on()
        return self._held[self._at : self._at + 1]

    def skip(self) -> None:
        """Leave one character."""
        self._at += 1

    def value(self) -> str:
        """The text of the next value. Raises Problem where its extent cannot be told."""
        while True:
            why = "is nested too deeply"
            try:
                # Only the extent counts here: Python reads no numbers of thousands of digits.
                end = json.JSONDecoder(parse_int=str).raw_decode(self._held, self._at)[1]
            except (json.JSONDecodeError, RecursionError) as error:
                end = len(self._held) + 1
                if isinstance(error, json.JSONDecodeError):
                    unfinished = error.pos >= len(self._held) or error.msg.startswith("Unterminated")
                    where = f"{error.msg} at its character {error.pos - self._at + 1}"
                    why = "is cut off: the file ends within it" if unfinished else f"is not JSON: {where}"
            if end < len(self._held) or (end == len(self._held) and self._ended):
                found, self._at = self._held[self._at : end], end
                return found
            if self._ended:
                raise Problem(field="", reason=why)
            if len(self._held) - self._at > _LONGEST:
                raise Problem(field="", reason=f"is longer than {_LONGEST >> 20} MiB, or is not JSON")
            self._read_on()

    def _pass_white_space(self) -> bool:
        """Whether nothing else is held."""
        self._at += len(_WHITE_SPACE.match(self._held, self._at)[0])  # type: ignore[index]
        return self._at == len(self._held)

    def _read_on(self) -> None:
        left = self._held[self._at :]
        chunk = self._text.read(max(_CHUNK, len(left)))
        self._held, self._at, self._ended = left + chunk, 0, not chunk


def _arrow_rows(file: Path, name: str) -> Iterator[RawRow]:
    import pyarrow

    number = 0
    with _open(file, name) as packed, tempfile.TemporaryFile() as unpacked:
        if _is_packed(file):
            # Parquet is read from its end; a compressed stream has no end to seek to.
            shutil.copyfileobj(packed, unpacked)
            unpacked.seek(0)
        try:
            schema, batches = _batches(unpacked if _is_packed(file) else packed, parquet=_suffix(file) == ".parquet")
            for twice in (column for column, count in Counter(schema.names).items() if count > 1):
                raise bad_data("UnreadableFile", f'{name} has the column "{twice}" twice; write it again')
            class_names = _class_names(schema)
            for batch in batches:
                for fields in _rows_of(batch):
                    number += 1
                    for column, names in class_names.items():
                        fields[column] = names.get(fields[column])
                    yield RawRow(line=number, fields=_without_padding(fields), raw=repr(fields))
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise bad_data(
                "UnreadableFile", f"{name} is not a readable {_suffix(file)} file (row {number + 1}): {error}"
            ) from error


def _batches(stream: IO[bytes], *, parquet: bool) -> tuple[Any, Iterator[Any]]:
    """The schema, and some rows after the other. `.arrow` is a stream where `datasets` wrote it, else a file of Arrow's
    that has an end of its own.
    """
    import pyarrow.ipc
    import pyarrow.parquet

    if parquet:
        opened = pyarrow.parquet.ParquetFile(stream)
        return opened.schema_arrow, opened.iter_batches(batch_size=_ROWS_AT_ONCE)
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    reader = pyarrow.ipc.open_file(stream) if is_file else pyarrow.ipc.open_stream(stream)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
    parts = (pyarrow.Table.from_batches([batch]).to_batches(max_chunksize=_ROWS_AT_ONCE) for batch in batches)
    return reader.schema, itertools.chain.from_iterable(parts)


def _rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch. Of what Python has no value for, each field is told by itself."""
    import pyarrow

    try:
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
    except (MemoryError, pyarrow.ArrowMemoryError):
        raise
    except Exception:  # by type: OverflowError, ValueError, KeyError, ArrowException, ...
        columns = [map(_value, column) for column in batch.columns]
        return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]
    return rows


def _value(scalar: Any) -> Any:
    import pyarrow

    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except (MemoryError, pyarrow.ArrowMemoryError):
        raise
    except Exception:
        match scalar:
            case pyarrow.StructScalar():
                return {name: _value(each) for name, each in scalar.items()}
            case pyarrow.ListScalar() if not isinstance(scalar, pyarrow.MapScalar):
                return [_value(each) for each in scalar.values]
        return Unread(kind=str(scalar.type))


def _class_names(schema: Any) -> dict[str, dict[int, str]]:
    """By column of numbers that stand for names: the names by number, which `datasets` writes into the file. Other
    tools keep what is written there of columns that they remove or replace.
    """
    import pyarrow.types

    with suppress(Problem):
        match parse_json((schema.metadata or {}).get(b"huggingface", b"").decode(errors="replace")):
            case {"info": {"features": dict(features)}}:
                numbers = {field.name for field in schema if pyarrow.types.is_integer(field.type)}
                return {
                    name: dict(enumerate(each["names"]))
                    for name, each in features.items()
                    if name in numbers
                    and isinstance(each, dict)
                    and isinstance(each.get("names"), list)
                    and each.get("_type") == "ClassLabel"
                }
    return {}


def _without_padding(value: Any) -> Any:
    """The value without empty fields: a column of objects pads each with the fields of all the others, and pandas
    writes a missing text as NaN.
    """
    match value:
        case dict():
            return {name: _without_padding(found) for name, found in value.items() if not _is_padding(found)}
        case list():
            return [_without_padding(found) for found in value]
    return value


def _is_padding(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
