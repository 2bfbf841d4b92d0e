"""What a value of another type means: `2h30m` is 9000 in a field of seconds, `25%` is 0.25 in one of shares."""

from __future__ import annotations

import json
import re
from typing import Any

_SHARES = {"": 1.0, "%": 0.01}
_BYTES = {"": 1.0, "Ki": 2.0**10, "KiB": 2.0**10, "Mi": 2.0**20, "MiB": 2.0**20, "Gi": 2.0**30, "GiB": 2.0**30}
_UNITS = {
    "seconds": {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0},
    "bytes": _BYTES | {"kB": 1e3, "MB": 1e6, "GB": 1e9},
    "percent": {"": 1.0, "%": 1.0},
}
"""What each unit is worth, by the end of the field's name."""
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z%]*) ?")
_SWITCHES = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}


def meant(value: Any, *, expected: str, field: str) -> str:
    """How to write what was meant, as YAML; empty where nobody can tell."""
    if expected == "boolean":
        return _SWITCHES.get(str(value).lower(), "")
    if expected == "string" and isinstance(value, int | float):
        return f'"{json.dumps(value)}"'
    if expected not in ("integer", "number") or not isinstance(value, str):
        return ""
    units = next((units for ending, units in _UNITS.items() if field.lower().endswith(ending)), _SHARES)
    parts = [match for match in _PART.finditer(value) if match[2] in units]
    bare = [match for match in parts if not match[2]]  # of `1h30` nobody can tell which unit the 30 has
    if not parts or (bare and len(parts) > 1) or "".join(match[0] for match in parts) != value:
        return ""
    number = float(sum(float(match[1]) * units[match[2]] for match in parts))
    return f"{number:.12g}" if expected == "number" or number.is_integer() else ""
