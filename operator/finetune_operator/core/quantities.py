"""Quantities of Kubernetes as numbers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)([KMGTPE]i|[numkMGTPE]?)")
_POWERS = {suffix: Decimal(1000) ** power for power, suffix in enumerate(("n", "u", "m", "", *"kMGTPE"), -3)}
_BINARY = {f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", 1)}


def amount(value: Any) -> Decimal | None:
    """The number that a resource.Quantity means; None: it is none."""
    found = None if isinstance(value, bool) else _QUANTITY.fullmatch(str(value))
    return Decimal(found[1]) * (_BINARY | _POWERS)[found[2]] if found else None
