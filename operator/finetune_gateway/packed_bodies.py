"""PURE: bodies of requests that come packed (RFC 9110, 8.4.1)."""

from __future__ import annotations

import zlib

ENCODINGS = ("", "identity", "gzip", "deflate")
_GZIP, _ZLIB, _BARE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_MOST_MEMBERS = 64


def unpacked(body: bytes, *, encoding: str, most: int) -> bytes | None:
    """The body as it was before it was packed; None where that is larger than `most` bytes.

    `deflate` with or without zlib's head: some clients leave it out. Raises ValueError for one that is damaged or not
    whole.
    """
    if encoding in ("", "identity"):
        return body
    window = _GZIP if encoding == "gzip" else _ZLIB if body[:1] and body[0] & 0xF == zlib.DEFLATED else _BARE
    whole, rest = b"", body
    for _ in range(_MOST_MEMBERS):
        unpacker = zlib.decompressobj(window)
        try:
            whole += unpacker.decompress(rest, most + 1 - len(whole))
        except zlib.error:
            raise ValueError("it is damaged") from None
        if len(whole) > most:
            return None
        rest = unpacker.unused_data  # another member (RFC 1952, 2.2)
        if not unpacker.eof:
            raise ValueError("its end is missing")
        if not rest:
            return whole
    raise ValueError("it has too many parts")
