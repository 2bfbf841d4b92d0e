"""PURE: the W3C trace context of a request, as it goes on to a server (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re

from multidict import CIMultiDictProxy

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-[!-~]*)?")
_KEY = r"[a-z0-9][a-z0-9_*/@-]{0,255}"
_MEMBER = re.compile(rf"{_KEY}=[ -+\--<>-~]{{0,255}}[!-+\--<>-~]")
_MOST_MEMBERS, _MOST_CHARACTERS = 32, 4096


def carried(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    """The headers that say of which trace a request is part; {}: of none, or of none that can be read.

    A `tracestate` that cannot be read is left out, the `traceparent` beside it is not.
    """
    parents = headers.getall(TRACEPARENT, ())
    parent = _PARENT.fullmatch(parents[0].strip()) if len(parents) == 1 else None
    if parent is None or (parent["more"] and parent[0].startswith("00")):
        return {}
    members = [each.strip() for each in ",".join(headers.getall(TRACESTATE, ())).split(",") if each.strip()]
    keys = {member.partition("=")[0] for member in members}
    state = ",".join(members)
    is_good = len(keys) == len(members) <= _MOST_MEMBERS and len(state) <= _MOST_CHARACTERS
    if not (members and is_good and all(map(_MEMBER.fullmatch, members))):
        return {TRACEPARENT: parent[0]}
    return {TRACEPARENT: parent[0], TRACESTATE: state}
