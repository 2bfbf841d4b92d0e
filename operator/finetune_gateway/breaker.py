"""PURE: when a gateway leaves a broken variant by itself, within a second or two and without asking anybody.

Time is passed in (seconds of a monotonic clock). An open breaker stays open: only a newer epoch of the routes, which is
the operator's decision, closes it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune_api.routes import Breaker

_FAR = 3.5
"""Standard errors between two shares that chance does not explain, though they are looked at with every answer."""


@dataclass(kw_only=True)
class BreakerState:
    """Recent answers of one variant under one rule."""

    settings: Breaker
    opened: str | None = None
    """Why it opened; None while closed."""
    _answers: deque[tuple[float, bool]] = field(default_factory=deque)
    _failures: int = 0

    def share(self, *, now: float) -> float:
        """Of the answers within the window, how many failed."""
        horizon = now - self.settings.window_seconds
        while self._answers and self._answers[0][0] < horizon:
            self._failures -= self._answers.popleft()[1]
        return self._failures / len(self._answers) if self._answers else 0.0

    def likely_share(self, *, now: float) -> float:
        """The same as far as few answers tell (Laplace's rule of succession); 0 where there are none."""
        self.share(now=now)
        return (self._failures + 1) / (len(self._answers) + 2) if self._answers else 0.0

    def note(self, *, now: float, failed: bool) -> None:
        """Take in one answer."""
        self._answers.append((now, failed))
        self._failures += failed

    def fails_more_than(self, other: BreakerState, *, now: float) -> bool:
        """Whether more fail here beyond chance: two shares, with the standard error of what both have in common."""
        here, there = self.share(now=now), other.share(now=now)
        answers, others = len(self._answers), len(other._answers)
        common = (self._failures + other._failures) / max(answers + others, 1)
        error = math.sqrt(common * (1 - common) * (1 / max(answers, 1) + 1 / max(others, 1)))
        return here - there > _FAR * error

    def record(self, *, now: float, failed: bool, what: str, fallback: Sequence[BreakerState] = ()) -> bool:
        """Count one answer; True when this one opened the breaker. `fallback`: how that fares, in one or more windows.
        A version is not left for one that fails nearly as often: then it is not the version's fault."""
        self.note(now=now, failed=failed)
        share, total = self.share(now=now), len(self._answers)
        if self.opened is not None or not failed:
            return False
        if self._failures < self.settings.failures or share < self.settings.failure_ratio:
            return False
        if any(share < 2 * each.likely_share(now=now) and not self.fails_more_than(each, now=now) for each in fallback):
            return False
        window = self.settings.window_seconds
        self.opened = f"{self._failures} of {total} requests failed within {window:g} s, the last with: {what}"
        return True
