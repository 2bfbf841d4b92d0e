"""Manifests from files, folders and standard input."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from finetune_operator.cli.errors import CommandError
from finetune_operator.core.ports import Manifest
from finetune_operator.validation import ManifestTextError, read_manifests

_SUFFIXES = (".yaml", ".yml", ".json")


def manifests_from(name: str) -> list[Manifest]:
    """All objects of a file, of a folder's files (sorted by name), or of standard input (`-`)."""
    if name == "-":
        return _parsed(sys.stdin.read(), source="standard input")
    return [manifest for file in files_of(name) for manifest in _read(Path(file))]


def files_of(name: str) -> list[str]:
    """A folder's files, sorted by name; else the name itself. Raises CommandError where the folder has none."""
    path = Path(name)
    if name == "-" or not path.is_dir():
        return [name]
    files = sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES)
    if not files:
        raise CommandError(f"{name}: no {', '.join(_SUFFIXES)} file in this folder")
    return [str(file) for file in files]


def folder_of(name: str) -> Path:
    """What relative file:// URIs of a manifest are relative to: its folder, or the current one for standard input."""
    path = Path.cwd() if name == "-" else Path(name).absolute()
    return path if path.is_dir() else path.parent


def with_absolute_uris(manifest: Manifest, *, folder: Path) -> Manifest:
    """The manifest with `file://./data.jsonl` and `file://../data.jsonl` as absolute URIs.

    Only local mode offers these: a cluster has no folder that a manifest lies in.
    """

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _uri(item) if key == "uri" else absolute(item) for key, item in value.items()}
        return [absolute(item) for item in value] if isinstance(value, list) else value

    def _uri(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(("file://./", "file://../")):
            return "file://" + os.path.normpath(folder / value.removeprefix("file://"))
        return value

    return {key: absolute(value) if key == "spec" else value for key, value in manifest.items()}


def _read(path: Path) -> list[Manifest]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommandError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from error
    return _parsed(text, source=str(path))


def _parsed(text: str, *, source: str) -> list[Manifest]:
    try:
        return read_manifests(text, source=source)
    except ManifestTextError as error:
        raise CommandError(str(error)) from error
