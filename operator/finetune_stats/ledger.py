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

STATE_VERSION = 1

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


def ledger_from_dict(document: dict[str, object]) -> Ledger:
    """Read back `Ledger.to_dict`. Raises ValueError for another version or a malformed document."""
    if document.get("version") != STATE_VERSION:
        raise ValueError(f"ledger has version {document.get('version')!r}; expected {STATE_VERSION}")
    sources, width = document["sources"], document["width"]
    if not isinstance(sources, dict) or not isinstance(width, int):
        raise ValueError("ledger: sources must be an object of lists, width a whole number")
    return Ledger(
        width=width,
        sources=tuple(
            sorted((str(name), tuple(float(value) for value in counters)) for name, counters in sources.items())
        ),
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


def forget(ledger: Ledger, *, keep: Collection[str]) -> Ledger:
    """Drop the sources that are gone for good. A source that posts again after this counts from zero: once more."""
    return Ledger(width=ledger.width, sources=tuple(item for item in ledger.sources if item[0] in keep))
