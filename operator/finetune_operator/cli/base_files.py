"""A base model's size, from as few bytes as tell it: a folder of this machine, or the hub's small files over HTTP."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from finetune_api.model_shape import ModelShape, shapes_in
from finetune_operator.local.home import LocalHome

_SECONDS = 15.0
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
Opened = Callable[[str], AbstractContextManager[BinaryIO]]


def shape_of(uri: str, *, revision: str | None, home: LocalHome) -> ModelShape | str:
    """How large the base model is, or why that cannot be seen from here."""
    path = home.path_of(uri)
    if path is None and not uri.startswith("hf://"):
        return f"{uri} cannot be read from here; Prepare does, and chooses"
    if path is not None and not (path / "config.json").is_file():
        return f"{path} has no config.json; what it holds is converted in Prepare, which chooses"
    try:
        return _shape(_of_folder(path) if path is not None else _of_hub(uri, revision=revision))
    except (OSError, ValueError) as error:
        return f"{uri}: {error}"


def _shape(opened: Opened) -> ModelShape:
    with opened("config.json") as stream:
        config = json.loads(stream.read())
    tensors: dict[str, tuple[int, ...]] = {}
    try:
        for name in _weights(opened):
            with opened(name) as stream:
                tensors |= shapes_in(stream)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):  # pickles, elsewhere, or not yet there
        tensors = {}
    return ModelShape.of(config, tensors)


def _weights(opened: Opened) -> list[str]:
    try:
        with opened(_INDEX) as stream:
            return sorted(set(json.loads(stream.read())["weight_map"].values()))
    except (FileNotFoundError, urllib.error.HTTPError):
        return [_WEIGHTS]


def _of_folder(folder: Path) -> Opened:
    return lambda name: (folder / name).open("rb")


def _of_hub(uri: str, *, revision: str | None) -> Opened:
    """Only the beginning of a large file is read: the connection is closed after it."""
    site = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def opened(name: str) -> AbstractContextManager[BinaryIO]:
        address = f"{site}/{uri.removeprefix('hf://')}/resolve/{revision or 'main'}/{name}"
        request = urllib.request.Request(address, headers=headers)  # noqa: S310 - HF_ENDPOINT is the user's own
        answer: AbstractContextManager[BinaryIO] = urllib.request.urlopen(request, timeout=_SECONDS)  # noqa: S310
        return answer

    return opened
