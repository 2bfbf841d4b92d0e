"""Keep one user, or one repeated prompt, from counting as many.

All sequential methods of this package take weights in [0, 1] that are exponents of single observations' factors. The
product of one user's factors with weights that add up to at most 1 is at most their weighted arithmetic mean, whose
expectation is at most 1 however these observations depend on each other. So with a cap of 1 per batch a user's burst of
like requests is exactly as good as one independent request; a higher cap trades that protection for speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from finetune_stats.distributions import FloatArray


def user_weights(*, users: Sequence[Hashable], cap: float) -> FloatArray:
    """Weights, shape (observations,), under which no user's observations in this batch add up to more than `cap`."""
    if cap <= 0:
        raise ValueError(f"the cap on a user's weight must be above 0; got {cap}")
    seen = Counter(users)
    return np.array([min(1.0, cap / seen[user]) for user in users], dtype=np.float64)


def weight_of_next(*, used: float, cap: float) -> float:
    """The weight of a user's next observation when the earlier ones of the window have used up `used` of `cap`.

    For streams, where it is not known how many will follow: a user's first observations count, later ones do not.
    """
    return min(1.0, max(0.0, cap - used))


def first_occurrences(
    *, keys: Sequence[Hashable], seen: frozenset[Hashable]
) -> tuple[tuple[bool, ...], frozenset[Hashable]]:
    """Which of `keys` (probe prompts) occur for the first time, and what is seen afterwards.

    The same prompt sent again to the same two versions says nothing new.
    """
    known = set(seen)
    fresh = []
    for key in keys:
        fresh.append(key not in known)
        known.add(key)
    return tuple(fresh), frozenset(known)
