"""Many tensors in safetensors files, never all of them in memory at once.

`NAME.safetensors` where they are few, else NAME-00001.safetensors, NAME-00002.safetensors, ...; of several processes
each has a NAME of its own, `NAME-RANK`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FILE_BYTES = 2 << 30
"""After which another file is begun."""


class NotFinite(Exception):
    """A tensor holds what is no number."""


class Writer:
    """Writes tensors under a name, each file as soon as it is full."""

    def __init__(self, folder: Path, *, name: str, copies: bool = False) -> None:
        """`copies`: nothing is written before `close`, whatever becomes of the tensors meanwhile."""
        self._folder = folder
        self._name = name
        self._copies: dict[str, torch.Tensor] | None = {} if copies else None
        self._held: dict[str, torch.Tensor] = {}
        self._size = 0
        self._files: list[Path] = []

    def add(self, key: str, tensor: torch.Tensor) -> None:
        """One more."""
        if self._copies is not None:
            self._copies[key] = tensor.to("cpu", copy=True)
            return
        if self._size >= FILE_BYTES:
            self._flush(f"-{len(self._files) + 1:05}")
        self._held[key] = tensor.cpu().contiguous()
        self._size += tensor.nbytes

    def close(self) -> list[Path]:
        """That was all; the files."""
        copies, self._copies = self._copies or {}, None
        for key in list(copies):
            self.add(key, copies.pop(key))
        self._flush(f"-{len(self._files) + 1:05}" if self._files else "")
        return self._files

    def _flush(self, number: str) -> None:
        self._files.append(self._folder / f"{self._name}{number}.safetensors")
        save_file(self._held, self._files[-1])
        self._held.clear()
        self._size = 0


class Turns:
    """Which process keeps the next tensor, so that all keep as many bytes: the same in each of them."""

    def __init__(self, writers: Sequence[int]) -> None:
        self._kept = dict.fromkeys(writers, 0)

    def next(self, size: int) -> int:
        """A rank."""
        writer = min(self._kept, key=self._kept.__getitem__)
        self._kept[writer] += size
        return writer


def go_through(
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    mine: Callable[[int], bool],
    keep: Callable[[str, torch.Tensor], None],
) -> BaseException | None:
    """Keep each that is finite, and `mine` by its bytes; making one is an exchange between processes, so all are made.

    What went wrong is returned, not raised, so that the others' exchanges come to their end.
    """
    failure: BaseException | None = None
    for key, tensor in tensors:
        if not mine(tensor.nbytes) or failure is not None:
            continue
        try:
            if tensor.numel() and not all(math.isfinite(end) for end in torch.aminmax(tensor)):
                raise NotFinite(f"{key} is not finite")
            keep(key, tensor)
        except Exception as error:
            failure = error
    return failure


def read(folder: Path, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """All of them, one after another, in no particular order."""
    for path in sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*.safetensors")]):
        with safe_open(path, framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118 - no mapping
                yield key, stream.get_tensor(key)
