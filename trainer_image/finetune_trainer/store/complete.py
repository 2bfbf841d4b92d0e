"""The COMPLETE manifest: a folder counts as finished only when this file is there and agrees with what is beside it.

It is written last. It names the input that the folder was made from, and size and sha256 of each file, so a torn
folder (a kill, a full disk, a lost upload) is told from a finished one without trusting names or times.

    {"version": 1, "input_digest": "sha256:...", "digest": "sha256:...", "size_bytes": 9437184,
     "files": [{"path": "adapter_model.safetensors", "size": 9437000, "sha256": "..."}], "extra": {...}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

FILE_NAME = "COMPLETE"
_VERSION = 1
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, order=True)
class FileDigest:
    """One file: path relative to its folder, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Complete:
    """What a COMPLETE manifest says."""

    input_digest: str
    """Of everything that the folder's content depends on; the writer's to define."""
    files: tuple[FileDigest, ...]
    extra: Mapping[str, Any]
    """Whatever the writer wants to find again: step, result."""

    @property
    def digest(self) -> str:
        """The folder's digest (`finetune_api.shared_fields.Artifact.digest`)."""
        return tree_digest(self.files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        """The file's text."""
        said = {"version": _VERSION, "digest": self.digest, "size_bytes": self.size_bytes}
        return json.dumps(said | asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Complete:
        """Read the file's text. Raises ValueError when it is not a manifest of this version, or not self-consistent."""
        try:
            document = json.loads(text)
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']} is not {_VERSION}")
            complete = cls(
                input_digest=str(document["input_digest"]),
                files=tuple(FileDigest(**file) for file in document["files"]),
                extra=dict(document["extra"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a COMPLETE manifest: {error!r}") from error
        if complete.digest != document.get("digest"):
            raise ValueError("its digest does not fit its own list of files")
        return complete


def tree_digest(files: Iterable[FileDigest]) -> str:
    """Digest of a folder: sha256 over the sorted lines `<file sha256>  <relative path>`, each ended by a newline.

    The same as `find * -type f ! -path COMPLETE | xargs sha256sum | LC_ALL=C sort | sha256sum` in the folder.
    """
    lines = sorted(f"{file.sha256}  {file.path}\n".encode() for file in files)
    return "sha256:" + hashlib.sha256(b"".join(lines)).hexdigest()


def local_digests(folder: Path) -> tuple[FileDigest, ...]:
    """Size and sha256 of each file of a folder, sorted by path."""
    return tuple(sorted(file_digest(path, folder=folder) for path in folder.rglob("*") if path.is_file()))


def file_digest(path: Path, *, folder: Path) -> FileDigest:
    """Of one file of a folder, or of a file that stands for itself (its path is empty then)."""
    with path.open("rb") as stream:
        size, sha256 = stream_digest(stream)
    return FileDigest(path=path.relative_to(folder).as_posix() if path != folder else "", size=size, sha256=sha256)


def stream_digest(stream: BinaryIO) -> tuple[int, str]:
    """Size and sha256 (hex) of what is left in a stream."""
    digest = hashlib.sha256()
    size = 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()
