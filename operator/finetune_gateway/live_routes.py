"""The routes in force, their breakers, and the epoch that this replica acknowledges."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from finetune_api.observations import BreakerTrip
from finetune_api.routes import RouteRule, Routes
from finetune_gateway.breaker import BreakerState
from finetune_gateway.metrics import Metrics
from finetune_gateway.tally import Tally

logger = logging.getLogger(__name__)
_LONGEST_REASON = 512
"""As long as a report may hold it."""
_REFERENCE_SECONDS = 60.0
"""A few requests do not tell how often a fallback fails."""


@dataclass(kw_only=True)
class LiveRoutes:
    """One routing table at a time; a newer epoch replaces it between two requests."""

    tally: Tally
    metrics: Metrics
    current: Routes | None = None
    compared_since: int = 0
    """The first epoch of those in force since which the same versions are compared, for the same clients. A comparison
    may take several epochs: a guard begins with the promotion, and somebody may put back the routes of any step."""
    heard: set[str] = field(default_factory=set)
    """Versions whose servers have answered this gateway: of others nothing is counted (first_answers.py)."""
    asked: bool = False
    """Each version of the first routes was asked once."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Newer routes are in force."""
    _breakers: dict[tuple[str, str], BreakerState] = field(default_factory=dict)
    """Of all variants of a rule. That of the fallback never opens: it says how often requests fail anyway."""
    _references: dict[str, tuple[str, BreakerState, BreakerState]] = field(default_factory=dict)
    """By rule: the fallback, and how it fared within the breaker's window and within a longer one."""

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
        if self.current is None or _compared(self.current) != _compared(routes):
            self.compared_since = routes.epoch
        self.current = routes
        self.heard &= routes.variants.keys()  # servers of one that comes back later start anew
        self.metrics.keep(variants=[variant.name for variant in routes.variants.values()])
        self.changed.set()
        self._breakers = {
            (rule.name, variant): BreakerState(settings=rule.breaker)
            for rule in routes.rules
            if rule.breaker is not None
            for variant in {*rule.weights, *([rule.fallback] if rule.fallback else [])}
        }
        self._references = {
            rule.name: (
                rule.fallback,
                self._breakers[rule.name, rule.fallback],
                BreakerState(settings=rule.breaker.model_copy(update={"window_seconds": _REFERENCE_SECONDS})),
            )
            for rule in routes.rules
            if rule.breaker is not None and rule.fallback is not None
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
        if state is not None and self._references.get(rule, ("",))[0] == variant:
            for each in self._references[rule][1:]:
                each.note(now=time.monotonic(), failed=failed)
            return
        if state is None or not state.record(
            now=time.monotonic(), failed=failed, what=what, fallback=self._references.get(rule, ("",))[1:]
        ):
            return
        trip = BreakerTrip(
            epoch=epoch, rule=rule, variant=variant, reason=(state.opened or what)[:_LONGEST_REASON], at=time.time()
        )
        self.tally.breakers.append(trip)
        self.metrics.breakers.inc()
        logger.error("left variant %s of rule %s for its fallback: %s", variant, rule, state.opened)

    def failing_elsewhere(self, rule: str) -> float:
        """The share of requests that have failed at the rule's fallback lately."""
        now = time.monotonic()
        return max((state.likely_share(now=now) for state in self._references.get(rule, ())[1:]), default=0.0)

    def overdue_seconds(self, rule: str, variant: str) -> float | None:
        """After how long without a first byte a request to the variant counts as failed; None: no breaker."""
        state = self._breakers.get((rule, variant))
        return state.settings.overdue_seconds if state is not None else None


def _compared(routes: Routes) -> tuple[list[RouteRule], tuple[str, str] | None]:
    """Who is given which version, and whose answers to the same prompts are compared."""
    order = routes.shadow
    return routes.rules, (order.candidate, order.stable) if order is not None else None
