"""From cumulative counters to increments, without counting anything twice or losing anything.

Gateways post what they counted since they started, under a name that changes with each start (boot id). Posts may be
lost, repeated or overtaken by later ones. The increment is what a post adds to the highest counters seen from the same
source. Store the ledger in the same write as the state that was fed with its increments: then a restart between two
writes repeats both or neither.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finetune_stats.documents import Document, check_version, number, numbers, section

STATE_VERSION = 1

ENDED = "ended"
"""Stands for all sources that post no more. No source may have this name."""

Counters = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The highest counters seen, by source, ordered by source; each has `width` numbers."""

    width: int
    sources: tuple[tuple[str, Counters], ...] = ()

    @property
    def total(self) -> Counters:
        """Sum over all sources."""
        return tuple(math.fsum(counters[i] for _, counters in self.sources) for i in range(self.width))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "version": STATE_VERSION,
            "width": self.width,
            "sources": {source: list(counters) for source, counters in self.sources},
        }


def ledger_from_dict(document: Document) -> Ledger:
    """Read back `Ledger.to_dict`. Raises ValueError for another version or a malformed document."""
    check_version(document, of="ledger", expected=STATE_VERSION)
    sources = section(document, "sources")
    return Ledger(
        width=int(number(document, "width")), sources=tuple((name, numbers(sources, name)) for name in sorted(sources))
    )


def absorb(ledger: Ledger, *, source: str, cumulative: Sequence[float]) -> tuple[Ledger, Counters]:
    """Take in one post: the new ledger and the increment.

    A post that is behind what was seen (repeated or overtaken) adds nothing. Raises ValueError for a post of the wrong
    width or with a number that is negative or not finite.
    """
    counters = tuple(float(value) for value in cumulative)
    if len(counters) != ledger.width or not all(math.isfinite(value) and value >= 0 for value in counters):
        raise ValueError(f"post of {source}: expected {ledger.width} finite counters >= 0; got {counters}")
    known = dict(ledger.sources)
    before = known.get(source, (0.0,) * ledger.width)
    if any(now < then for now, then in zip(counters, before, strict=True)):
        return ledger, (0.0,) * ledger.width
    known[source] = counters
    increment = tuple(now - then for now, then in zip(counters, before, strict=True))
    return Ledger(width=ledger.width, sources=tuple(sorted(known.items()))), increment


def without_ended(ledger: Ledger, *, ended: Collection[str]) -> Ledger:
    """The ledger with one sum, of the source ENDED, in place of the counters of sources that post no more: the total
    stays, and the ledger does not grow with every start. What they may still post must not be absorbed again."""
    gone = [counters for source, counters in ledger.sources if source in {*ended, ENDED}]
    if not any(source in ended for source, _ in ledger.sources):
        return ledger
    kept = [(source, counters) for source, counters in ledger.sources if source not in {*ended, ENDED}]
    sums = tuple(map(math.fsum, zip(*gone, strict=True)))
    return Ledger(width=ledger.width, sources=tuple(sorted([*kept, (ENDED, sums)])))
