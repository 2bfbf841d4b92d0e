"""A runner's rounds without engine and thread: who is under way in which round is the test's choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.serving.engine import Runner


def run(
    runner: Runner, works: Sequence[Any], *, begin: Sequence[int] = (), leave: Mapping[int, int] | None = None
) -> list[list[Any]]:
    """The events of each work. `begin`: the round in which each begins (else the first); `leave`: in which it is given
    up, by the work's number."""
    starts, leaves = [*begin, *[0] * (len(works) - len(begin))], leave or {}
    events: list[list[Any]] = [[] for _ in works]
    over: set[int] = set()
    for number in range(10_000):
        over |= {index for index, left in leaves.items() if left <= number}
        if len(over) == len(works):
            list(runner.round([]))
            return events
        under_way = [index for index in range(len(works)) if starts[index] <= number and index not in over]
        indices = {id(works[index]): index for index in under_way}
        for work, event in runner.round([works[index] for index in under_way]):
            index = indices[id(work)]
            events[index].append(event)
            if isinstance(event, Exception) or event.last:
                over.add(index)
    raise AssertionError("it does not end")
