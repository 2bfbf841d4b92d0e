"""How many steps there are, which examples each one sees, and at which learning rate: pure functions of the order.

Nothing here has state, so a run that goes on from step N sees exactly what it would have seen without the break.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from finetune_api.run import Optimisation


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The course of a run over `examples` training examples."""

    optimisation: Optimisation
    examples: int
    roll_backs: tuple[int, ...] = ()
    """The steps that training, having diverged, went back to (`back_to`). From each on the learning rate is half."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps to see each example once; the last one may be smaller."""
        return math.ceil(self.examples / self.optimisation.global_batch_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run, unless it stops early."""
        if self.optimisation.max_steps is not None:
            return self.optimisation.max_steps
        return max(1, math.ceil((self.optimisation.epochs or 1.0) * self.steps_per_epoch))

    def indices(self, step: int) -> list[int]:
        """The examples of an optimiser step (0, 1, ...), in order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _permutation(self.examples, seed=self.optimisation.seed * 1_000_003 + epoch)
        size = self.optimisation.global_batch_size
        chosen: list[int] = order[position * size : (position + 1) * size].tolist()
        return chosen

    def learning_rate(self, step: int) -> float:
        """The learning rate of an optimiser step: a linear rise, then constant, linear or cosine to zero."""
        return self._planned(step) * 0.5 ** sum(step >= start for start in self.roll_backs)

    def _planned(self, step: int) -> float:
        order = self.optimisation
        warmup = round(order.warmup_fraction * self.total_steps)
        if step < warmup:
            return order.learning_rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, self.total_steps - warmup)
        match order.scheduler:
            case "Constant":
                return order.learning_rate
            case "Linear":
                return order.learning_rate * (1.0 - done)
            case "Cosine":
                return order.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch (or the run) ends with this step."""
        return (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.total_steps


def back_to(*, diverged_at: int, before: int, every: int) -> int:
    """The step at which training that diverged in step `diverged_at` (1, 2, ...) goes on with half the learning rate:
    that of the newest regular checkpoint before, and one further back for each time `before`.

    It says nothing of which checkpoints there are, so the weights are the same however often the run is interrupted.
    OPT-175B (Zhang et al. 2022, 2.5) went back and lowered the rate; PaLM (Chowdhery et al. 2022, 5.1) skipped batches,
    and found that they were no worse than others. Here they are few, and each is somebody's example.
    """
    return max(0, ((diverged_at - 1) // every - before) * every)


@lru_cache(maxsize=2)
def _permutation(examples: int, *, seed: int) -> torch.Tensor:
    """The order of an epoch: drawn once (2 s for 10 million examples), and not again for each step."""
    return torch.randperm(examples, generator=torch.Generator().manual_seed(seed))
