"""Counts of what this replica saw, cumulative since its start, by epoch, rule and variant."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b

from finetune_api.observations import ArmCounts, BreakerTrip, Observations, PairCounts, ShadowCounts

EPOCHS_KEPT = 8
"""Older epochs have long been taken by the operator; they are forgotten to bound memory."""
_USERS_REMEMBERED = 100_000
UNNAMED_USERS = 20
"""A key or an address whose requests name no user stands for as many at a time: behind it there are many, or one in a
loop. So nobody's requests count without end, and an endpoint whose clients name no users still learns from them."""
KEY_USERS, ADDRESS_USERS = 1000, 100
"""So many at a time stand behind the names that a key, or an address without one, gives: names cost nothing."""
RENEWED_SECONDS = 600.0
"""After so long a key or an address may stand for as many again: a guard window is long."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Whose request it is, as far as counting goes."""

    source: str
    """The key that it came with, else the address that it came from."""
    has_key: bool = False
    name: str | None = None
    """As the request names its user."""


@dataclass(kw_only=True)
class Arm:
    """Mutable counts of one (epoch, rule, variant). Fields as in ArmCounts."""

    requests: int = 0
    clients: int = 0
    client_errors: int = 0
    errors: int = 0
    slow: int = 0
    bad: int = 0
    positive: int = 0
    negative: int = 0
    capped: int = 0
    latency_sum_seconds: float = 0.0


@dataclass(kw_only=True)
class Pair:
    """A two by two table of bad answers."""

    pairs: int = 0
    candidate_only: int = 0
    stable_only: int = 0
    both: int = 0

    def add(self, *, candidate_bad: bool, stable_bad: bool) -> None:
        """Count one pair."""
        self.pairs += 1
        self.both += candidate_bad and stable_bad
        self.candidate_only += candidate_bad and not stable_bad
        self.stable_only += stable_bad and not candidate_bad


@dataclass(kw_only=True)
class Shadowed:
    """How the shadow itself fares."""

    sampled: int = 0
    dropped: int = 0


ArmKey = tuple[int, str, str]
PairKey = tuple[int, str, str, str, str]


@dataclass(kw_only=True)
class Tally:
    """All counts of this boot."""

    endpoint: str
    gateway: str
    address: str = ""
    boot_id: str = field(default_factory=lambda: secrets.token_hex(8))
    arms: dict[ArmKey, Arm] = field(default_factory=dict)
    pairs: dict[PairKey, Pair] = field(default_factory=dict)
    shadows: dict[int, Shadowed] = field(default_factory=dict)
    breakers: list[BreakerTrip] = field(default_factory=list)
    in_flight: dict[str, int] = field(default_factory=dict)
    _users: OrderedDict[bytes, int] = field(default_factory=OrderedDict)

    def arm(self, key: ArmKey) -> Arm:
        """The counts of an arm."""
        found = self.arms.get(key)
        if found is None:
            found = self.arms[key] = Arm()
        return found

    def pair(self, key: PairKey) -> Pair:
        """The table of (epoch, source, candidate, stable, metric)."""
        return self.pairs.setdefault(key, Pair())

    def shadow(self, epoch: int) -> Shadowed:
        """The shadow's counts of an epoch."""
        return self.shadows.setdefault(epoch, Shadowed())

    def weigh(self, *, since: int, variant: str, user: User, cap: int, now: float) -> tuple[bool, bool]:
        """Whether a request counts, and whether it is the voice of a user: no single one may decide a comparison.

        `since`: the epoch in which the comparison began. `cap`: requests of one user that count in it. `now`: seconds
        of any clock.
        """
        first = False
        if user.name is not None:
            number = self._number(since, variant, user.name)
            first = number == 1
            if number > cap:
                return False, False
        number = self._number(since, variant, user.source, user.name is None, int(now / RENEWED_SECONDS))
        named = KEY_USERS if user.has_key else ADDRESS_USERS
        users = UNNAMED_USERS if user.name is None else named
        counts = number <= cap * users
        return counts, counts and (first if user.name is not None else number <= users)

    def _number(self, *whose: object) -> int:
        """Which one it is of these requests. Of a fixed size, however long a name is."""
        key = blake2b(repr(whose).encode(), digest_size=16).digest()
        self._users[key] = number = self._users.pop(key, 0) + 1
        if len(self._users) > _USERS_REMEMBERED:
            self._users.popitem(last=False)
        return number

    def forget_before(self, epoch: int) -> None:
        """Drop the counts of epochs older than EPOCHS_KEPT."""
        oldest = epoch - EPOCHS_KEPT
        for table in (self.arms, self.pairs):
            for key in [key for key in table if key[0] < oldest]:
                del table[key]  # type: ignore[arg-type]
        for number in [number for number in self.shadows if number < oldest]:
            del self.shadows[number]
        self.breakers = [trip for trip in self.breakers if trip.epoch >= oldest]

    def observations(self, *, acknowledged_epoch: int) -> Observations:
        """The report of this moment."""
        return Observations(
            endpoint=self.endpoint,
            gateway=self.gateway,
            boot_id=self.boot_id,
            address=self.address,
            acknowledged_epoch=acknowledged_epoch,
            draining={variant: count for variant, count in self.in_flight.items() if count > 0},
            arms=[
                ArmCounts(epoch=epoch, rule=rule, variant=variant, **vars(arm))
                for (epoch, rule, variant), arm in sorted(self.arms.items())
            ],
            pairs=[
                PairCounts.model_validate(
                    {
                        "epoch": epoch,
                        "source": source,
                        "candidate": candidate,
                        "stable": stable,
                        "metric": metric,
                        **vars(table),
                    }
                )
                for (epoch, source, candidate, stable, metric), table in sorted(self.pairs.items())
            ],
            shadow=[ShadowCounts(epoch=epoch, **vars(counts)) for epoch, counts in sorted(self.shadows.items())],
            breakers=list(self.breakers),
        )
