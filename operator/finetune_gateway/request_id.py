"""PURE: request ids that carry which variant answered, signed so that a vote cannot be forged or moved to another.

`<payload>.<mac>`, both base64url: payload = epoch, rule, variant, random; mac = the first 16 bytes of HMAC-SHA256.
"""

from __future__ import annotations

import base64
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
    nonce: str


def new_id(*, key: bytes, epoch: int, rule: str, variant: str) -> str:
    """A fresh id for one answer."""
    payload = _payload_head(epoch, rule, variant) + _encode(os.urandom(9)).encode() + b'"]'
    return f"{_encode(payload)}.{_encode(_mac(key, payload))}"


def read_id(*, key: bytes, request_id: str) -> Answered | None:
    """What a signed id says; None for anything that we did not sign."""
    head, _, tail = request_id.partition(".")
    try:
        payload, mac = _decode(head), _decode(tail)
    except ValueError:
        return None
    if not hmac.compare_digest(mac, _mac(key, payload)):
        return None
    epoch, rule, variant, nonce = json.loads(payload)
    return Answered(epoch=epoch, rule=rule, variant=variant, nonce=nonce)


@lru_cache(maxsize=256)
def _payload_head(epoch: int, rule: str, variant: str) -> bytes:
    """The payload up to its random part, which is the same for many answers."""
    return json.dumps([epoch, rule, variant, ""], separators=(",", ":")).removesuffix('"]').encode()


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")[:16]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.encode("ascii", "strict") + b"=" * (-len(text) % 4))
