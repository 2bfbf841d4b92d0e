"""PURE: request ids that carry which variant answered, signed so that a vote cannot be forged or moved to another.

`<payload>.<mac>`, both base64url: payload = epoch, rule, variant, tag of the gateway that signed, random; mac = the
first 16 bytes of HMAC-SHA256.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a request id says."""

    epoch: int
    rule: str
    variant: str


@dataclass(frozen=True, kw_only=True)
class Signer:
    """A gateway's way to sign: its tag and a key that nobody else knows."""

    issuer: str
    key: bytes


@lru_cache(maxsize=256)
def issuer_tag(gateway: str) -> str:
    """What stands for a gateway in its ids; clients need not learn the names of pods."""
    return hashlib.sha256(gateway.encode()).hexdigest()[:12]


def new_id(*, signer: Signer, epoch: int, rule: str, variant: str) -> str:
    """A fresh id for one answer."""
    payload = _payload_head(epoch, rule, variant, signer.issuer) + _encode(os.urandom(9)).encode() + b'"]'
    return f"{_encode(payload)}.{_encode(_mac(signer.key, payload))}"


def issuer_of(request_id: str) -> str | None:
    """Who signed an id, as it says itself: good for asking him and for nothing else. None: it is no id of ours."""
    try:
        _, _, _, issuer, _ = json.loads(_decode(request_id.partition(".")[0]))
    except (ValueError, TypeError, RecursionError):
        return None
    return issuer if isinstance(issuer, str) else None


def read_id(*, key: bytes, request_id: str) -> Answered | None:
    """What a signed id says; None for anything that we did not sign."""
    head, _, tail = request_id.partition(".")
    try:
        payload, mac = _decode(head), _decode(tail)
    except ValueError:
        return None
    if not hmac.compare_digest(mac, _mac(key, payload)):
        return None
    epoch, rule, variant, _, _ = json.loads(payload)
    return Answered(epoch=epoch, rule=rule, variant=variant)


@lru_cache(maxsize=256)
def _payload_head(epoch: int, rule: str, variant: str, issuer: str) -> bytes:
    """The payload up to its random part, which is the same for many answers."""
    return json.dumps([epoch, rule, variant, issuer, ""], separators=(",", ":")).removesuffix('"]').encode()


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")[:16]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.encode("ascii", "strict") + b"=" * (-len(text) % 4))
