"""PURE: when a gateway leaves a broken variant by itself, within a second or two and without asking anybody.

Time is passed in (seconds of a monotonic clock). An open breaker stays open: only a newer epoch of the routes, which is
the operator's decision, closes it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from finetune_api.routes import Breaker


@dataclass(kw_only=True)
class BreakerState:
    """Recent answers of one variant under one rule."""

    settings: Breaker
    opened: str | None = None
    """Why it opened; None while closed."""
    _answers: deque[tuple[float, bool]] = field(default_factory=deque)
    _failures: int = 0

    def record(self, *, now: float, failed: bool, what: str) -> bool:
        """Count one answer; True when this one opened the breaker."""
        self._answers.append((now, failed))
        self._failures += failed
        horizon = now - self.settings.window_seconds
        while self._answers[0][0] < horizon:
            self._failures -= self._answers.popleft()[1]
        if self.opened is not None or not failed:
            return False
        total = len(self._answers)
        if self._failures < self.settings.failures or self._failures < self.settings.failure_ratio * total:
            return False
        window = self.settings.window_seconds
        self.opened = f"{self._failures} of {total} requests failed within {window:g} s, the last with: {what}"
        return True
