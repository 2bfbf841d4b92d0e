"""JSON Lines: one document a line, and a line ends at `\\n` alone (https://jsonlines.org).

`str.splitlines` ends lines at U+2028, U+2029 and U+0085 too, which JSON texts may hold as they are. Our files are read
here without it, and written so that others may: these three are escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


def to_line(document: Mapping[str, Any]) -> str:
    """A document with its line's end, keys sorted."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True).translate(_LINE_ENDS) + "\n"


def to_text(documents: Iterable[Mapping[str, Any]]) -> str:
    """The text of a file."""
    return "".join(map(to_line, documents))


def lines_of(text: str) -> list[str]:
    """The lines of a file that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def read(text: str) -> list[Any]:
    """The documents of a file. Raises ValueError where a line is not JSON."""
    return [json.loads(line) for line in lines_of(text)]
