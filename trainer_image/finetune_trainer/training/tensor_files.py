"""Many tensors in safetensors files, never all of them in memory at once.

`NAME.safetensors` where they are few, else NAME-00001.safetensors, NAME-00002.safetensors, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FILE_BYTES = 2 << 30
"""After which another file is begun."""


class NotFinite(Exception):
    """A tensor holds what is no number."""


def write(tensors: Iterable[tuple[str, torch.Tensor]], *, folder: Path | None, name: str) -> BaseException | None:
    """Write them; None for `folder`: only go through them, since making each is an exchange between processes.

    What went wrong is returned, not raised, so that the others' exchanges come to their end.
    """
    held: dict[str, torch.Tensor] = {}
    size = files = 0
    failure: BaseException | None = None

    def flush(number: int) -> None:
        assert folder is not None
        save_file(held, folder / (f"{name}-{number:05}.safetensors" if number else f"{name}.safetensors"))
        held.clear()

    for key, tensor in tensors:
        if folder is None or failure is not None:
            continue
        try:
            if size >= FILE_BYTES:
                files += 1
                flush(files)
                size = 0
            if not bool(torch.isfinite(tensor).all()):
                raise NotFinite(f"{key} is not finite")
            held[key] = tensor.cpu().contiguous()
            size += tensor.nbytes
        except Exception as error:
            failure = error
            held.clear()
    if folder is not None and failure is None:
        try:
            flush(files + 1 if files else 0)
        except Exception as error:
            failure = error
    return failure


def read(folder: Path, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """All of them, one after another, in no particular order."""
    for path in sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*.safetensors")]):
        with safe_open(path, framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118 - no mapping
                yield key, stream.get_tensor(key)
