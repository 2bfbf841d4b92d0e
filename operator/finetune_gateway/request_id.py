"""PURE: request ids that only the gateway that gave them can read, so that no client learns or picks who answers it.

`base64url(issuer | seal | sealed number)`: 36 bytes, hence 48 characters, each of which counts: an id has one spelling.
The issuer says which gateway to ask about it. The number of the answer is sealed as in a synthetic-IV scheme
(P. Rogaway, T. Shrimpton, "Deterministic Authenticated-Encryption", EUROCRYPT 2006) with keyed BLAKE2b (RFC 7693) as
the function: the seal authenticates issuer and number, and makes the bytes that hide the number. Numbers never repeat,
so ids do not.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

ANSWER_HEADER = "X-Finetune-Answer-Id"
"""The id of an answer, on each of them."""
REQUEST_HEADER = "X-Request-Id"
"""The client's own id of its request where it gave one, else the id of the answer."""
_GIVEN = re.compile(r"[!-~]{1,128}")
"""Ids of clients that are taken: visible ASCII. Longer ones would only fill logs."""
_ISSUER, _SEAL, _NUMBER = 6, 16, 14
_SPELLING = re.compile(r"[A-Za-z0-9_-]{48}")


@lru_cache(maxsize=256)
def issuer_tag(gateway: str) -> str:
    """What stands for a gateway in its ids; clients need not learn the names of pods."""
    return hashlib.sha256(gateway.encode()).hexdigest()[: 2 * _ISSUER]


@dataclass(frozen=True, kw_only=True)
class Sealer:
    """A gateway's way to make ids and to read its own: its tag, and a key that nobody else knows."""

    issuer: str
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def seal(self, number: int) -> str:
        """The id of an answer."""
        issuer, plain = bytes.fromhex(self.issuer), number.to_bytes(_NUMBER, "big")
        seal = self._digest(issuer + plain, size=_SEAL, use=b"seal")
        return base64.urlsafe_b64encode(issuer + seal + self._hidden(plain, seal=seal)).decode()

    def open(self, request_id: str) -> int | None:
        """The number of the answer; None for anything that this gateway did not seal."""
        if _SPELLING.fullmatch(request_id) is None:
            return None
        content = base64.urlsafe_b64decode(request_id)
        issuer, seal, hidden = content[:_ISSUER], content[_ISSUER:-_NUMBER], content[-_NUMBER:]
        plain = self._hidden(hidden, seal=seal)
        if not hmac.compare_digest(seal, self._digest(issuer + plain, size=_SEAL, use=b"seal")):
            return None
        return int.from_bytes(plain, "big")

    def _hidden(self, number: bytes, *, seal: bytes) -> bytes:
        mask = self._digest(seal, size=_NUMBER, use=b"mask")
        return (int.from_bytes(number, "big") ^ int.from_bytes(mask, "big")).to_bytes(_NUMBER, "big")

    def _digest(self, content: bytes, *, size: int, use: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=size, key=self.key, person=use).digest()


def issuer_of(request_id: str) -> str | None:
    """Whose id it is, as it says itself: good for asking him and for nothing else. None: it is no id of ours."""
    if _SPELLING.fullmatch(request_id) is None:
        return None
    return base64.urlsafe_b64decode(request_id)[:_ISSUER].hex()


def given_id(headers: Mapping[str, str]) -> str | None:
    """The id that the client gave its request."""
    given = headers.get(REQUEST_HEADER, "")
    return given if _GIVEN.fullmatch(given) is not None else None
