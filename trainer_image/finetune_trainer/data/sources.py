"""The data sources of a run: fetched, digested, and read into checked rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_api.finetunejob import Source
from finetune_trainer.data import source_files
from finetune_trainer.data.fields import printable
from finetune_trainer.data.rows import Content, Quarantine, Row, RowFormat
from finetune_trainer.process.errors import bad_data
from finetune_trainer.store import complete, hub
from finetune_trainer.store.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenedSource:
    """A source whose files are local."""

    source: Source
    files: tuple[tuple[str, Path], ...]
    """What messages call a file, and where it is."""
    left_out: tuple[str, ...]
    """Names of files that are there and not read."""
    digest: str
    """Over the files' contents and relative names."""

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def identity(self) -> dict[str, Any]:
        """All that the rows depend on, JSON-ready; not where they lie."""
        return self.source.to_dict() | {"uri": self.digest}


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """What a source gave."""

    source: Source
    rows: tuple[Row, ...]
    rows_read: int
    """Bad ones included."""
    left_out: tuple[str, ...]
    """Names of files that were not read."""


def opened(source: Source, *, storage: Storage, stack: ExitStack) -> OpenedSource:
    """Find a source's files; remote ones are copied and stay until `stack` is closed. Raises StageError."""
    if source.uri.startswith("hf://"):
        storage.check_readable(source.uri)
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="finetune-")))
        local, others = hub.download_dataset(source.uri, into=scratch, suffixes=source_files.SUFFIXES)
    else:
        local, others = stack.enter_context(storage.local_copy(source.uri)), []
    found, left_out = source_files.find(local, uri=source.uri)
    digests, files = [], []
    for path in found:
        digest = complete.file_digest(path, folder=local)
        digests.append(digest)
        files.append((f"{source.name} ({source.uri.rstrip('/')}{'/' + digest.path if digest.path else ''})", path))
    return OpenedSource(
        source=source,
        files=tuple(files),
        left_out=tuple(sorted({*map(printable, others), *left_out})),
        digest=complete.tree_digest(digests),
    )


def read(
    opened_source: OpenedSource,
    *,
    possible: tuple[RowFormat, ...],
    stratum_field: str | None,
    quarantine: Quarantine,
    judge: Callable[[Content], None],
) -> SourceRows:
    """All good rows of a source. `possible`: the formats that it may have; `judge` as in `source_files.read`.

    Raises StageError (65) where it has no row at all.
    """
    source = opened_source.source
    bad_before = quarantine.count

    def everything() -> Iterator[Row]:
        for name, path in opened_source.files:
            yield from quarantine.good_rows(
                source_files.read(
                    path,
                    name=name,
                    source=source.name,
                    possible=possible,
                    stratum_field=stratum_field,
                    judge=judge,
                )
            )

    rows = tuple(everything())
    rows_read = len(rows) + quarantine.count - bad_before
    if rows_read == 0:
        raise bad_data("EmptyData", f"source {source.name} ({source.uri}) has no rows; put examples there or remove it")
    log.info("source %s: %d rows read, %d of them bad", source.name, rows_read, quarantine.count - bad_before)
    return SourceRows(source=source, rows=rows, rows_read=rows_read, left_out=opened_source.left_out)
