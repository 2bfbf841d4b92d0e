"""Feedback: one vote for each answer, by the signed id of its request."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from finetune_gateway.request_id import Signer, issuer_of, read_id
from finetune_gateway.tally import Tally

_REMEMBERED = 100_000
Vote = Literal["up", "down"]
Outcome = Literal["counted", "unknown", "already"]


@dataclass(kw_only=True)
class Votes:
    """Votes and the answers they are about. Memory is bounded: the oldest are forgotten first."""

    tally: Tally
    signer: Signer
    _voted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _bad: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def answered(self, *, request_id: str, bad: bool) -> None:
        """Remember an answer that was judged bad, so that a vote against it does not count it twice."""
        if bad:
            self._remember(self._bad, request_id)

    def vote(self, *, request_id: str, rating: Vote) -> Outcome:
        """Count a vote for the arm that answered. Unknown: this gateway did not sign that id."""
        answered = read_id(key=self.signer.key, request_id=request_id)
        if answered is None:
            return "unknown"
        if request_id in self._voted:
            return "already"
        self._remember(self._voted, request_id)
        arm = self.tally.arm((answered.epoch, answered.rule, answered.variant))
        if rating == "up":
            arm.positive += 1
        else:
            arm.negative += 1
            arm.bad += request_id not in self._bad
        return "counted"

    def issued_elsewhere(self, request_id: str) -> str | None:
        """The tag of the other gateway that an id names; None for one of this gateway, or of nobody."""
        issuer = issuer_of(request_id)
        return None if issuer == self.signer.issuer else issuer

    @staticmethod
    def _remember(table: OrderedDict[str, None], request_id: str) -> None:
        table[request_id] = None
        if len(table) > _REMEMBERED:
            table.popitem(last=False)
