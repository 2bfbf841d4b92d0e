"""PURE: pages of which origins may read answers (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

EVERY_ORIGIN = "*"
_NAMES = re.compile(r"[A-Za-z0-9, -]{1,1024}")
_READABLE = "X-Request-Id, X-Finetune-Answer-Id, Retry-After"
_REMEMBERED_SECONDS = 600


def headers_for(*, origin: str | None, allowed: Collection[str]) -> dict[str, str]:
    """What lets a page of an origin read an answer; nothing for an origin that may not."""
    if not allowed:
        return {}
    if origin is None or not (origin in allowed or EVERY_ORIGIN in allowed):
        return {"Vary": "Origin"}
    return {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _READABLE}


def is_preflight(*, method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks what it may send. It shows no key then."""
    return method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers


def preflight_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The answer to a page of an origin that may ask: our methods, and all the headers that it names."""
    named = headers.get("Access-Control-Request-Headers", "")
    return {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": named if _NAMES.fullmatch(named) else "Authorization, Content-Type",
        "Access-Control-Max-Age": str(_REMEMBERED_SECONDS),
    }
