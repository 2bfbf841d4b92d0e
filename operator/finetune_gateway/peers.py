"""The endpoint's other gateways: a vote goes to the one that gave the answer, which alone knows whether it has one.

Each replica signs with a key of its own, which nobody else knows. So no key is shared, and no vote counts twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from pydantic import ValidationError

from finetune_api.observations import ObservationsReply
from finetune_gateway.request_id import issuer_tag
from finetune_gateway.votes import Outcome, Vote

logger = logging.getLogger(__name__)
VOTE_ROUTE = "/votes"
"""At the status port. The signed id is the right to vote; the client's key was checked where the vote came in."""
_TIMEOUT = aiohttp.ClientTimeout(total=5.0, sock_connect=2.0)


class PeerUnavailableError(Exception):
    """The gateway that gave the answer exists and cannot be asked now."""


@dataclass(kw_only=True)
class Peers:
    """Where the others are, as the operator said last."""

    session: aiohttp.ClientSession
    _addresses: Mapping[str, str] = field(default_factory=dict)
    """By the tag that their request ids carry."""

    def learn(self, reply: bytes) -> None:
        """Take in the operator's answer to a report. One that cannot be read changes nothing."""
        try:
            peers = ObservationsReply.model_validate_json(reply).peers
        except ValidationError as error:
            logger.warning("the operator's answer cannot be read: %s", error)
            return
        self._addresses = {issuer_tag(name): address for name, address in peers.items()}

    async def vote(self, *, issuer: str, request_id: str, rating: Vote) -> Outcome:
        """Have the gateway that gave an answer count a vote about it. Raises PeerUnavailableError."""
        address = self._addresses.get(issuer)
        if address is None:
            return "unknown"
        body = {"request_id": request_id, "rating": rating}
        try:
            async with self.session.post(f"http://{address}{VOTE_ROUTE}", json=body, timeout=_TIMEOUT) as answer:
                answer.raise_for_status()
                outcome: Outcome = json.loads(await answer.read())["outcome"]
                return outcome
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise PeerUnavailableError(f"{address}: {type(error).__name__}: {error}") from error
