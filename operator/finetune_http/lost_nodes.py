"""Connections to machines that may be gone: nobody answers then, not even to refuse."""

from __future__ import annotations

import socket

from aiohttp import AddrInfoType

NOTICED_SECONDS = 10
"""How long the other side may leave what was sent, or a question whether it is still there, without an answer. The
system's own limits are 15 minutes and 2 hours."""
_ASKED_AFTER_SECONDS, _ASKED_AGAIN_SECONDS = 5, 1


def watched_socket(address: AddrInfoType) -> socket.socket:
    """A socket whose connection ends with an error when the other side's machine is gone (RFC 5482, tcp(7))."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _ASKED_AFTER_SECONDS),
        ("TCP_KEEPINTVL", _ASKED_AGAIN_SECONDS),
        ("TCP_USER_TIMEOUT", 1000 * NOTICED_SECONDS),
    ):
        if hasattr(socket, name):  # Linux
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
