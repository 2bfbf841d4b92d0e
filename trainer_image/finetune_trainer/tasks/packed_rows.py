"""What a model is told of a packed row beside its tokens: how long each of its examples is.

It goes around the model, not through it: not every architecture hands on what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of the examples of a packed row, in order."""

    each: tuple[int, ...]
    boundaries: torch.Tensor
    """Where each begins, and the end of the last, on the device; int32, shape (examples + 1,)."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """On the CPU."""
        return cls(each=tuple(lengths), boundaries=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32))

    def to(self, device: torch.device) -> Lengths:
        """Nothing waits for it."""
        return Lengths(each=self.each, boundaries=self.boundaries.pin_memory().to(device, non_blocking=True))

    @property
    def places(self) -> list[slice]:
        """Of each example in the row."""
        ends = list(accumulate(self.each))
        return [slice(end - length, end) for end, length in zip(ends, self.each, strict=True)]


_LENGTHS: ContextVar[Lengths | None] = ContextVar("lengths", default=None)


@contextmanager
def packed(row: Lengths | None) -> Iterator[None]:
    """Inside of it, a model is asked with one packed row of these examples, or (None) with no packed row."""
    before = _LENGTHS.set(row)
    try:
        yield
    finally:
        _LENGTHS.reset(before)


def lengths() -> Lengths | None:
    """Of the row that is being asked about."""
    return _LENGTHS.get()
