"""What is known of the answers that this gateway gave: which arm each counts for, and one vote for each.

Every answer has a number, which its id hides. Memory is fixed: an arm and a byte for each of the last answers.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Literal

from finetune_gateway.request_id import Sealer, issuer_of
from finetune_gateway.tally import ArmKey, Tally

REMEMBERED = 1 << 20
"""Answers that can be voted on: the last million, some twenty minutes of a gateway that is as busy as it can be."""
_BEYOND = 1 << 64
"""No answer has a number as high as this."""
_COUNTED, _BAD, _VOTED = 1, 2, 4
Vote = Literal["up", "down"]
Outcome = Literal["counted", "not_counted", "unknown", "already"]


@dataclass(kw_only=True)
class Votes:
    """Ids of answers, and what became of them. Each is bad at most once, for whatever reason."""

    tally: Tally
    sealer: Sealer
    remembered: int = REMEMBERED
    _given: int = 0
    """How many ids were given."""
    _keys: dict[ArmKey, ArmKey] = field(default_factory=dict)
    """Each arm once, however many answers it gave."""
    _arms: list[ArmKey] = field(default_factory=list)
    _known: bytearray = field(default_factory=bytearray)

    def id_of_nobody(self) -> str:
        """An id like any other, of an answer that no version gave. It takes no place among those remembered."""
        return self.sealer.seal(_BEYOND + secrets.randbits(64))

    def new_id(self, key: ArmKey) -> str:
        """The id of an answer of an arm."""
        key = self._keys.setdefault(key, key)
        if len(self._arms) < self.remembered:
            self._arms.append(key)
            self._known.append(0)
        else:
            self._arms[self._given % self.remembered] = key
            self._known[self._given % self.remembered] = 0
        self._given += 1
        return self.sealer.seal(self._given - 1)

    def counts(self, request_id: str) -> None:
        """The answer is one of those that its arm is judged by: so is a vote on it."""
        self._note(self._place(request_id), _COUNTED)

    def found_bad(self, request_id: str) -> None:
        """The answer was judged bad."""
        self._note(self._place(request_id), _BAD)

    def vote(self, *, request_id: str, rating: Vote) -> Outcome:
        """Count a vote for the arm that answered, in the epoch in which it did.

        Not counted: the request was not either, since its user had been counted often enough, or the client went away
        before the answer was complete. Unknown: not an answer of this gateway, or too many came after it.
        """
        place = self._place(request_id)
        if place is None or self._arms[place] not in self.tally.arms:
            return "unknown"
        if self._known[place] & _VOTED:
            return "already"
        if not self._known[place] & _COUNTED:
            return "not_counted"
        self._known[place] |= _VOTED
        arm = self.tally.arms[self._arms[place]]
        if rating == "up":
            arm.positive += 1
        else:
            arm.negative += 1
            self._note(place, _BAD)
        return "counted"

    def issued_elsewhere(self, request_id: str) -> str | None:
        """The tag of the other gateway that an id names; None for one of this gateway, or of nobody."""
        issuer = issuer_of(request_id)
        return None if issuer == self.sealer.issuer else issuer

    def _place(self, request_id: str) -> int | None:
        number = self.sealer.open(request_id)
        if number is None or not self._given - self.remembered <= number < self._given:
            return None
        return number % self.remembered

    def _note(self, place: int | None, fact: int) -> None:
        """An answer that counts and is bad is a bad one of its arm, whichever of the two was known first."""
        if place is None:
            return
        before = self._known[place]
        self._known[place] = after = before | fact
        both, key = _COUNTED | _BAD, self._arms[place]
        if key in self.tally.arms and before & both != both and after & both == both:
            self.tally.arms[key].bad += 1
