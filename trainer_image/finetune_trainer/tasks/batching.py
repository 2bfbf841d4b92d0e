"""Examples of like length run through a model together; results come back in the order of the examples."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_LOG_SECONDS = 10.0


def run_in_batches(
    items: Sequence[Item],
    *,
    length: Callable[[Item], int],
    batch_size: int,
    run: Callable[[Sequence[Item]], Sequence[Outcome]],
    what: str,
) -> list[Outcome]:
    """Apply `run` to batches of at most `batch_size` items of similar length, the longest first.

    Little is then spent on padding, and what does not fit into memory shows at once: such a batch is halved.
    `what` names the work in the log.
    """
    order = sorted(range(len(items)), key=lambda index: length(items[index]), reverse=True)
    outcomes: dict[int, Outcome] = {}
    began = logged = time.monotonic()
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        found = _run_halving([items[index] for index in indices], run=run)
        outcomes.update(zip(indices, found, strict=True))
        if time.monotonic() - logged > _LOG_SECONDS:
            logged = time.monotonic()
            log.info("%s: %d of %d examples, %.0f s", what, len(outcomes), len(items), logged - began)
    log.info("%s: %d examples in %.1f s", what, len(items), time.monotonic() - began)
    return [outcomes[index] for index in range(len(items))]


def pad(rows: Sequence[Sequence[int]], *, value: int, left: bool = False) -> torch.Tensor:
    """Rows of different length as one tensor, shape (rows, longest)."""
    longest = max(len(row) for row in rows)
    filled = [
        [value] * (longest - len(row)) + list(row) if left else list(row) + [value] * (longest - len(row))
        for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long)


def stretched_beyond(model: Any) -> int | None:
    """The tokens beyond which the longest row of a forward pass turns the rotary positions of all rows otherwise (kinds
    `dynamic` and `longrope`, as in Phi 3 and 4), so that rows do not go together; None: there is no such number.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = [str(each) for each in (kind.values() if isinstance(kind, dict) else [kind])]
        if any(each == "longrope" or "dynamic" in each for each in kinds):
            rope = getattr(module.config, "rope_parameters", None) or {}
            parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
            named = [
                part["original_max_position_embeddings"] for part in parts if "original_max_position_embeddings" in part
            ]
            return int(min(named, default=module.config.max_position_embeddings))
    return None


def stretches(model: Any, longest: int) -> bool:
    """Whether a row of so many tokens does."""
    beyond = stretched_beyond(model)
    return beyond is not None and longest > beyond


def _run_halving(batch: Sequence[Item], *, run: Callable[[Sequence[Item]], Sequence[Outcome]]) -> list[Outcome]:
    try:
        return list(run(batch))
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Outside of the except clause, whose traceback would keep the tensors of the failed attempt.
    torch.cuda.empty_cache()
    log.warning("%d examples at once do not fit into memory; trying half of them", len(batch))
    return [outcome for half in _halves(batch) for outcome in _run_halving(half, run=run)]


def _halves(batch: Sequence[Item]) -> Iterator[Sequence[Item]]:
    middle = len(batch) // 2
    yield batch[:middle]
    yield batch[middle:]
