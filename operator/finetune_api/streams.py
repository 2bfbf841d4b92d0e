"""Standard output and error of all our processes: what cannot be written as it is ends nothing.

What an encoding cannot show (a label, a file's name, an error's words on a terminal in ASCII) is written as an escape.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def never_fail() -> None:
    """Call once at the start of a process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by whoever started us: the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def let_go(stream: TextIO) -> None:
    """Nobody reads the stream any more, or nothing can take it: what is still written goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def tell(text: str, *, error: bool = False) -> None:
    """Print a line at once, for whoever has more to do than to be read: where it cannot be written, that is all."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        let_go(stream)
