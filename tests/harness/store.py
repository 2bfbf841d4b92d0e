"""Where the harness keeps what it builds, and how it is published: keyed by content, atomic, once.

The cache (`$FINETUNE_CACHE`, default `~/.cache/finetune-operator`) may be deleted at any time while no cluster runs; it
is built anew.

    bin/<module>-<hash>-<go version>/   Kubernetes, etcd, CoreDNS, Helm, ... built from tests/tools
    buildah/                            image layers: base, environments, our thin images
    locks/                              so that two processes do not build the same thing twice
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def cache() -> Path:
    """The cache's folder, made when missing."""
    folder = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock `name`: one process at a time; the kernel frees it when a process dies."""
    folder = cache() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(*, texts: Iterable[str] = (), paths: Iterable[Path] = ()) -> str:
    """Twelve hex digits that change with a text, a file's name, content or executable bit, or a folder's tree."""
    hasher = hashlib.sha256()
    for text in texts:
        hasher.update(f"text {len(text)}\n{text}".encode())
    for path in paths:
        for file in sorted(files_under(path)):
            content = file.read_bytes()
            executable = os.access(file, os.X_OK)
            hasher.update(f"file {file.relative_to(path.parent)} {executable} {len(content)}\n".encode())
            hasher.update(content)
    return hasher.hexdigest()[:12]


def files_under(path: Path) -> Iterator[Path]:
    """The files of a folder (or the file itself), without Python's byte code."""
    if path.is_file():
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            yield Path(folder) / name
