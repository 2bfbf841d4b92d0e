"""A token bucket per caller."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_CALLERS = 8192


class RateLimit:
    """Allows each caller `burst` calls at once and `per_second` on average; remembers a bounded number of callers."""

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, *, caller: str) -> float:
        """0 and the call is counted; or the seconds after which the caller may try again."""
        wait = self.wait_seconds(caller=caller)
        if wait == 0:
            self._buckets[caller] = (self._level(caller=caller) - 1, self._clock())
            self._buckets.move_to_end(caller)
            if len(self._buckets) > _CALLERS:
                self._buckets.popitem(last=False)
        return wait

    def wait_seconds(self, *, caller: str) -> float:
        """The seconds after which a call would be allowed; 0: now. Counts nothing."""
        return max(0.0, 1 - self._level(caller=caller)) / self._per_second

    def _level(self, *, caller: str) -> float:
        if caller not in self._buckets:
            return self._burst
        level, at = self._buckets[caller]
        return min(self._burst, level + (self._clock() - at) * self._per_second)
