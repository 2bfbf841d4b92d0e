"""Standard output and error of all our processes: what an encoding cannot show is written as an escape.

A terminal in ASCII or Latin-1 must not end a command because a label, a file's name or an error's words hold more.
"""

from __future__ import annotations

import io
import sys


def never_fail() -> None:
    """Call once at the start of a process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
