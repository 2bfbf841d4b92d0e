"""The routes in force, their breakers, and the epoch that this replica acknowledges."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from finetune_api.observations import BreakerTrip
from finetune_api.routes import Routes
from finetune_gateway.breaker import BreakerState
from finetune_gateway.tally import Tally

logger = logging.getLogger(__name__)
_LONGEST_REASON = 512
"""As long as a report may hold it."""


@dataclass(kw_only=True)
class LiveRoutes:
    """One routing table at a time; a newer epoch replaces it between two requests."""

    tally: Tally
    current: Routes | None = None
    _breakers: dict[tuple[str, str], BreakerState] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The epoch in force; 0 before the first routes."""
        return self.current.epoch if self.current is not None else 0

    def accept(self, routes: Routes) -> None:
        """Put newer routes in force. An older or equal epoch changes nothing: a stale read moves no traffic."""
        if routes.endpoint != self.tally.endpoint:
            logger.error("routes of endpoint %s refused: this gateway serves %s", routes.endpoint, self.tally.endpoint)
            return
        if routes.epoch <= self.epoch:
            return
        self.current = routes
        self._breakers = {
            (rule.name, variant): BreakerState(settings=rule.breaker)
            for rule in routes.rules
            if rule.breaker is not None
            for variant in rule.weights
            if variant != rule.fallback
        }
        self.tally.forget_before(routes.epoch)
        logger.info("routes of epoch %d in force", routes.epoch)

    def is_open(self, rule: str, variant: str) -> bool:
        """Whether the variant was left for its fallback."""
        state = self._breakers.get((rule, variant))
        return state is not None and state.opened is not None

    def record(self, *, epoch: int, rule: str, variant: str, failed: bool, what: str) -> None:
        """Tell the breaker of one answer of an epoch; answers of former epochs no longer matter."""
        state = self._breakers.get((rule, variant)) if epoch == self.epoch else None
        if state is None or not state.record(now=time.monotonic(), failed=failed, what=what):
            return
        trip = BreakerTrip(
            epoch=epoch, rule=rule, variant=variant, reason=(state.opened or what)[:_LONGEST_REASON], at=time.time()
        )
        self.tally.breakers.append(trip)
        logger.error("left variant %s of rule %s for its fallback: %s", variant, rule, state.opened)

    def overdue_seconds(self, rule: str, variant: str) -> float | None:
        """After how long without a first byte a request to the variant counts as failed; None: no breaker."""
        state = self._breakers.get((rule, variant))
        return state.settings.overdue_seconds if state is not None else None
