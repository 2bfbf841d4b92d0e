"""What a process runs through the model in a step: its share of the examples, and as many batches as each other has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from finetune_api.run import Optimisation
from finetune_trainer.process.gang import Gang
from finetune_trainer.tasks.encoding import IGNORED, Batch, Encoded, pack, packed_batch
from finetune_trainer.tasks.task import Task
from finetune_trainer.tasks.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Batches:
    """How examples are put together."""

    task: Task
    order: Optimisation
    pad_id: int
    gang: Gang
    beyond: int | None = None
    """See `stretched_beyond`: longer examples and others are in no row and no micro-batch together."""

    def of_step(self, examples: Tokens, chosen: Sequence[int]) -> list[Batch]:
        """For an optimiser step over the chosen examples: packed rows, or micro-batches of like length."""
        return list(self._of(examples, chosen))

    def tokens(self, examples: Tokens, chosen: Sequence[int]) -> int:
        """Non-padding tokens of a step, in all processes: each knows the shares of all."""
        return sum(examples.length(index) for index in chosen)

    def of_validation(self, examples: Tokens) -> Iterator[Batch]:
        """For all examples of the validation split, each made when it is wanted: they may not fit into memory. None is
        larger than those of a step, which do.
        """
        return self._of(examples, range(len(examples)))

    def _of(self, examples: Tokens, chosen: Sequence[int]) -> Iterator[Batch]:
        def packed(share: Sequence[int]) -> list[list[int]]:
            rows = pack([examples.length(index) for index in share], max_length=self.order.max_length)
            return [[share[place] for place in row] for row in rows]

        def padded(share: Sequence[int]) -> list[list[int]]:
            by_length = sorted(share, key=examples.length, reverse=True)
            return _chunks(by_length, self.order.micro_batch_size)

        def apart(share: Sequence[int]) -> list[list[int]]:
            beyond = math.inf if self.beyond is None else self.beyond
            longer = [index for index in share if examples.length(index) > beyond]
            others = [index for index in share if examples.length(index) <= beyond]
            return [group for part in (longer, others) for group in (packed if self.order.packing else padded)(part)]

        return self._equally_many(examples, chosen, apart, packed_batch if self.order.packing else self._filled)

    def _equally_many(
        self,
        examples: Tokens,
        chosen: Sequence[int],
        grouped: Callable[[Sequence[int]], list[list[int]]],
        make: Callable[[Sequence[Encoded]], Batch],
    ) -> Iterator[Batch]:
        """This process's batches. Each process knows the shares of all: whoever has fewer batches than another adds
        some without weight, so that all take part in each forward pass.
        """
        shares = [grouped(chosen[rank :: self.gang.world]) for rank in range(self.gang.world)]
        mine = shares[self.gang.rank]
        for group in mine:
            yield make([examples[index] for index in group])
        for _ in range(max(map(len, shares)) - len(mine)):
            yield self._nothing(examples)

    def _filled(self, examples: Sequence[Encoded]) -> Batch:
        return self.task.batch(examples, pad_id=self.pad_id)

    def _nothing(self, examples: Tokens) -> Batch:
        """A batch whose loss and gradients are zero."""
        batch = self._filled([examples[0]])
        return replace(batch, labels=torch.full_like(batch.labels, IGNORED), real_tokens=0)


def _chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[first : first + size]) for first in range(0, len(indices), size)]
