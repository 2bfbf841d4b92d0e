"""The data sources of a run: fetched, digested, and read into checked rows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_api.finetunejob import Source
from finetune_api.shared_fields import Task
from finetune_trainer import complete, hub, source_files
from finetune_trainer.complete import FileDigest
from finetune_trainer.errors import bad_data
from finetune_trainer.rows import Quarantine, Row, formats_of
from finetune_trainer.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenedSource:
    """A source whose files are local."""

    source: Source
    files: tuple[tuple[str, Path], ...]
    """What messages call a file, and where it is."""
    digest: str
    """Over the files' contents and relative names."""

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """What a source gave."""

    source: Source
    rows: tuple[Row, ...]
    rows_read: int
    """Bad ones included."""


def opened(source: Source, *, storage: Storage, stack: ExitStack) -> OpenedSource:
    """Find a source's files; remote ones are copied and stay until `stack` is closed. Raises StageError."""
    if source.uri.startswith("hf://"):
        storage.check_readable(source.uri)
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="finetune-")))
        local = hub.download_dataset(source.uri, into=scratch, suffixes=source_files.SUFFIXES)
    else:
        # Listing refuses links that lead out of what may be read.
        storage.list_files(source.uri)
        local = stack.enter_context(storage.local_copy(source.uri))
    found = source_files.find(local, uri=source.uri)
    digests, files = [], []
    for path in found:
        name = path.relative_to(local).as_posix() if path != local else ""
        with path.open("rb") as stream:
            size, sha256 = complete.stream_digest(stream)
        digests.append(FileDigest(path=name, size=size, sha256=sha256))
        files.append((f"{source.name} ({source.uri.rstrip('/')}{'/' + name if name else ''})", path))
    return OpenedSource(source=source, files=tuple(files), digest=complete.tree_digest(digests))


def read(opened_source: OpenedSource, *, task: Task, stratum_field: str | None, quarantine: Quarantine) -> SourceRows:
    """All good rows of a source. Raises StageError: 65 where it has no row at all, 78 for an unusable format."""
    source = opened_source.source
    possible = formats_of(task=task, declared=source.format)
    bad_before = quarantine.count

    def everything() -> Iterator[Row]:
        for name, path in opened_source.files:
            yield from quarantine.good_rows(
                source_files.read(path, name=name, source=source.name, possible=possible, stratum_field=stratum_field)
            )

    rows = tuple(everything())
    rows_read = len(rows) + quarantine.count - bad_before
    if rows_read == 0:
        raise bad_data("EmptyData", f"source {source.name} ({source.uri}) has no rows; put examples there or remove it")
    log.info("source %s: %d rows read, %d of them bad", source.name, rows_read, quarantine.count - bad_before)
    return SourceRows(source=source, rows=rows, rows_read=rows_read)


def input_digest(parts: dict[str, Any], sources: Sequence[OpenedSource]) -> str:
    """Digest of everything that the snapshot depends on: orders (`parts`, JSON-ready) and contents."""
    document = parts | {
        "sources": [
            {
                "name": opened.name,
                "digest": opened.digest,
                "format": opened.source.format,
                "weight": opened.source.weight,
            }
            for opened in sources
        ]
    }
    return "sha256:" + hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
