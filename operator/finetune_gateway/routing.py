"""PURE: which variant answers a request. The same request gives the same answer on every replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from finetune_api.routes import RouteRule, Routes

_BUCKETS = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where a request goes."""

    rule: str
    variant: str
    fallback: str | None
    """Another variant that may answer instead while nothing was sent to the client."""


def user_position(*, salt: str, user: str) -> float:
    """A user's place in [0, 100), uniform over users and fixed for a salt (the rollout)."""
    digest = blake2b(user.encode("utf-8", "surrogatepass"), key=salt.encode()[:64], digest_size=4).digest()
    return int.from_bytes(digest, "big") / _BUCKETS * 100.0


def choose(
    *, routes: Routes, headers: Mapping[str, str], position: float, is_open: Callable[[str, str], bool]
) -> Choice | None:
    """The first rule that matches decides; None where it has no variant that may be used.

    `headers` is looked up by lower-case name. `is_open(rule, variant)` tells that the variant's breaker is open.
    """
    for rule in routes.rules:
        if rule.match is None or all(headers.get(name) == value for name, value in rule.match.items()):
            return _within(rule=rule, routes=routes, position=position, is_open=is_open)
    return None


def _within(*, rule: RouteRule, routes: Routes, position: float, is_open: Callable[[str, str], bool]) -> Choice | None:
    chosen = _by_position(rule=rule, position=position)
    fallback = rule.fallback if rule.fallback != chosen else None
    if chosen is not None and not is_open(rule.name, chosen):
        return Choice(rule=rule.name, variant=chosen, fallback=fallback)
    if rule.fallback is not None:
        return Choice(rule=rule.name, variant=rule.fallback, fallback=None)
    if chosen is not None:
        return Choice(rule=rule.name, variant=chosen, fallback=None)
    return None


def _by_position(*, rule: RouteRule, position: float) -> str | None:
    """Lay the variants side by side on [0, 100), the fallback last: a growing share only adds users to a candidate."""
    ordered = sorted(rule.weights.items(), key=lambda item: (item[0] == rule.fallback, item[0]))
    edge = 0.0
    last: str | None = None
    for variant, weight in ordered:
        if weight <= 0:
            continue
        edge += weight
        last = variant
        if position < edge:
            return variant
    return last
